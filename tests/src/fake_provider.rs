//! A Web API of a provider that does what a story scripts: answers, or cuts the line before or after it took the message, or stays silent.
//! No real server produces that on demand. It records what it was sent, and what it took.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
};

use crate::background::Background;
use crate::tls::Identity;

/// A request that came whole.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number, from 0.
    pub number: usize,
    /// Path and query.
    pub path: String,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The API took the message, whatever it answered.
    pub taken: bool,
    /// When it was there.
    pub at: Instant,
}

impl Call {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("the body of a call")
    }

    /// The job ids that the body names, by the name under which `SendGrid` gives them back.
    pub fn job_ids(&self) -> Vec<String> {
        let body = self.json().unwrap_or_default();
        let list = body["personalizations"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|one| Some(one["custom_args"]["postrider_job_id"].as_str()?.to_owned())).collect()
    }
}

/// What the API does with a call.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// Answers with this status, these header lines and this body; a status of 2xx takes the message.
    Answer(u16, &'static str, String),
    /// Closes without an answer, and did not take it.
    CutBefore,
    /// Took it, and closes without an answer.
    CutAfter,
    /// Took it, and says nothing until the client gives up.
    Silent,
}

impl Reaction {
    /// `SendGrid`'s yes.
    pub fn yes() -> Self {
        Self::Answer(202, "X-Message-Id: abc", String::new())
    }

    /// A refusal in `SendGrid`'s form.
    pub fn no(status: u16, message: &str) -> Self {
        Self::Answer(status, "", format!("{{\"errors\":[{{\"message\":\"{message}\",\"field\":null}}]}}"))
    }

    fn takes(&self) -> bool {
        match self {
            Self::Answer(status, ..) => (200..300).contains(status),
            Self::CutBefore => false,
            Self::CutAfter | Self::Silent => true,
        }
    }
}

type Script = Box<dyn Fn(&Call) -> Reaction + Send + Sync>;

/// A running API.
pub struct FakeProvider {
    server: Background,
    shared: Arc<Shared>,
    scheme: &'static str,
    host: &'static str,
}

struct Shared {
    script: Mutex<Script>,
    calls: Mutex<Vec<Call>>,
    is_stalled: watch::Sender<bool>,
}

impl Shared {
    fn new(script: impl Fn(&Call) -> Reaction + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(script)),
            calls: Mutex::default(),
            is_stalled: watch::Sender::default(),
        })
    }
}

impl FakeProvider {
    /// An API that does what `script` says of each call.
    pub fn start(script: impl Fn(&Call) -> Reaction + Send + Sync + 'static) -> Result<Self> {
        let shared = Shared::new(script);
        let server = Background::serve({
            let shared = shared.clone();
            move |stream| {
                let shared = shared.clone();
                async move {
                    stream.set_nodelay(true)?;
                    serve(stream, shared).await
                }
            }
        })?;
        Ok(Self { server, shared, scheme: "http", host: "127.0.0.1" })
    }

    /// The same behind TLS, under the name `localhost`.
    pub fn start_tls(identity: &Identity, script: impl Fn(&Call) -> Reaction + Send + Sync + 'static) -> Result<Self> {
        let (shared, acceptor) = (Shared::new(script), identity.acceptor()?);
        let server = Background::serve({
            let shared = shared.clone();
            move |stream| {
                let (shared, acceptor) = (shared.clone(), acceptor.clone());
                async move { serve(acceptor.accept(stream).await?, shared).await }
            }
        })?;
        Ok(Self { server, shared, scheme: "https", host: "localhost" })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.server.port())
    }

    /// Another script from now on.
    pub fn set(&self, script: impl Fn(&Call) -> Reaction + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// From now on it answers nothing, until it is told to go on and answers everything.
    pub fn stall(&self, is_stalled: bool) {
        self.shared.is_stalled.send_replace(is_stalled);
    }

    /// What it was sent.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many calls it took.
    pub fn taken(&self) -> usize {
        self.calls().iter().filter(|call| call.taken).count()
    }
}

/// Requests of one connection, one after the other.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(mut call) = read(&mut stream, &mut buffer).await? else { return Ok(()) };
        let reaction = {
            let mut calls = shared.calls.lock().unwrap_or_else(PoisonError::into_inner);
            call.number = calls.len();
            let reaction = shared.script.lock().unwrap_or_else(PoisonError::into_inner)(&call);
            call.taken = reaction.takes();
            calls.push(call);
            reaction
        };
        shared.is_stalled.subscribe().wait_for(|is_stalled| !is_stalled).await?;
        let (status, line, body) = match reaction {
            Reaction::Answer(status, line, body) => (status, line, body),
            Reaction::CutBefore | Reaction::CutAfter => return Ok(()),
            Reaction::Silent => {
                // Until the client closes.
                while stream.read_buf(&mut buffer).await? > 0 {}
                return Ok(());
            }
        };
        let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
        let head = format!("HTTP/1.1 {status} Scripted\r\n{line}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await?;
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<Option<Call>> {
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).context("no path")?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let length: usize = length.context("a request without Content-Length")?;
    while buffer.len() < head_end + 4 + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = buffer[head_end + 4..head_end + 4 + length].to_vec();
    buffer.drain(..head_end + 4 + length);
    Ok(Some(Call { number: 0, path, headers, body, taken: false, at: Instant::now() }))
}
