//! `postrider health`: asks the admin address of the process that runs here. For containers, which have no shell and no other client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{ConfigArguments, output};

const LIMIT: Duration = Duration::from_secs(3);
/// Our own answers are a few lines; who sends more is not us.
const ANSWER_MAX: u64 = 4096;

/// Arguments of `postrider health`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Ask whether it does its work (/readyz), not only whether it runs (/healthz)
    #[arg(long)]
    ready: bool,
}

/// Exit status 0 if the process at `admin.listen` answers 200, 1 if not.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let address = config.admin.context("setting `admin.listen` is off: there is nothing to ask")?;
    let path = if arguments.ready { "/readyz" } else { "/healthz" };
    let answer = timeout(LIMIT, ask(reachable(address), path)).await;
    let answer = answer.with_context(|| format!("no answer from {address} within {LIMIT:?}"))??;
    let status = answer.lines().next().unwrap_or_default();
    anyhow::ensure!(status.split(' ').nth(1) == Some("200"), "{path} at {address}: {status}");
    // What it can do with something missing is well, and worth a word.
    let said = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    output::line(if said.contains("degraded") { said } else { "ok" })?;
    Ok(ExitCode::SUCCESS)
}

/// Who listens everywhere is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
