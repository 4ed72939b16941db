//! `postrider check --connect`: whether each neighbour answers from here. Changes nothing, sends nothing.

use std::{path::Path, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    cli::output,
    config::{Config, TransportConfig, TransportKind},
    delivery::context,
    transport::Transport,
};

/// Longest wait for one neighbour.
const LIMIT: Duration = Duration::from_secs(15);

/// Asks the queue, the store and each transport, and prints a line for each. True where all answered.
pub(super) async fn ask_each(config: &Config) -> anyhow::Result<bool> {
    // A file is made by the first worker.
    let is_to_come = |url: &SecretString| {
        let file = url.expose_secret().strip_prefix("embedded:").map(str::to_owned);
        file.is_some_and(|file| !Path::new(&file).exists())
    };
    let queue = async {
        if is_to_come(&config.queue.url) {
            return Ok("a file that the first worker makes".to_owned());
        }
        let queue = context::existing_queue(&config.queue).await?;
        queue.depths(true).await?;
        queue.close().await;
        anyhow::Ok("answers, and its queues stand".to_owned())
    };
    let store = async {
        if is_to_come(&config.store.url) {
            return Ok("a file that the first worker makes".to_owned());
        }
        let store = context::existing_store(config).await?;
        store.ping().await?;
        anyhow::Ok("answers".to_owned())
    };
    let mut all = told("queue", timeout(LIMIT, queue).await)? & told("store", timeout(LIMIT, store).await)?;
    for one in &config.transports {
        all &= told(&format!("transport {}", one.name), timeout(LIMIT, transport(one)).await)?;
    }
    Ok(all)
}

/// A relay is greeted and logged in to; of an API it is only asked whether its port is open, because a call would be a message.
async fn transport(config: &TransportConfig) -> anyhow::Result<String> {
    let transport = Transport::new(config)?;
    if let TransportKind::Smtp(smtp) = &config.kind {
        transport.greet().await.map_err(anyhow::Error::msg)?;
        return Ok(if smtp.login.is_some() { "answers, and takes the login" } else { "answers" }.to_owned());
    }
    let (_, host, port) = &transport.told;
    TcpStream::connect((host.as_ref(), *port)).await?;
    Ok(format!("{host}:{port} can be reached; whether it takes the key shows with the first message"))
}

fn told(who: &str, answer: Result<anyhow::Result<String>, tokio::time::error::Elapsed>) -> std::io::Result<bool> {
    let said = match answer {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} seconds", LIMIT.as_secs())),
    };
    match said {
        Ok(said) => output::line(&format!("{who}: {said}")).map(|()| true),
        Err(error) => {
            output::remark(&format!("{who}: {error}"));
            Ok(false)
        }
    }
}
