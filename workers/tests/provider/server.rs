//! An HTTP server that follows a script and keeps what it saw. It can cut connections where a real one would not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `POST /path`
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// The body as JSON.
    pub body: Value,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers; the connection stays open.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Answers, and closes the connection without having said so.
    AnswerAndClose(u16, String),
    /// Closes the connection without an answer.
    Cut,
    /// Begins this answer and closes in the middle of its body.
    CutBody(u16, String),
    /// Answers nothing for as long as the client waits.
    Silence,
    /// Answers with so many bytes.
    Endless(u16, usize),
}

/// `200` with this body.
pub fn ok(body: impl ToString) -> Act {
    answer(200, body)
}

/// This status with this body.
pub fn answer(status: u16, body: impl ToString) -> Act {
    Act::Answer(status, Vec::new(), body.to_string())
}

type Script = dyn Fn(usize, &Seen) -> Act + Send + Sync;

#[derive(Default)]
struct Book {
    seen: Vec<Seen>,
    connections: usize,
    bytes_out: usize,
}

pub struct Server {
    pub port: u16,
    book: Arc<Mutex<Book>>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Asks `script` what to do with each request; it gets the number of the request, from 0.
    pub async fn start(script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static) -> Self {
        Self::start_with(None, Arc::new(script)).await
    }

    /// The same behind TLS.
    pub async fn start_tls(tls: TlsAcceptor, script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static) -> Self {
        Self::start_with(Some(tls), Arc::new(script)).await
    }

    async fn start_with(tls: Option<TlsAcceptor>, script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let book = Arc::new(Mutex::new(Book::default()));
        let (kept, book) = (book.clone(), book);
        let accept = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                book.lock().unwrap().connections += 1;
                tasks.spawn(connection(stream, tls.clone(), book.clone(), script.clone()));
            }
        });
        Self { port, book: kept, accept }
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.book.lock().unwrap().seen.clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.book.lock().unwrap().connections
    }

    /// How many bytes of endless answers went out.
    pub fn bytes_out(&self) -> usize {
        self.book.lock().unwrap().bytes_out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, book: Arc<Mutex<Book>>, script: Arc<Script>) {
    match tls {
        None => talk(stream, &book, &*script).await,
        // A client that does not like the certificate goes away here.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                talk(stream, &book, &*script).await;
            }
        }
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, book: &Mutex<Book>, script: &Script) {
    while let Some(seen) = read(&mut stream).await {
        let count = {
            let mut book = book.lock().unwrap();
            book.seen.push(seen.clone());
            book.seen.len() - 1
        };
        let write = match script(count, &seen) {
            Act::Answer(status, headers, body) => {
                let more = headers.into_iter().map(|(name, value)| [name, ": ", &value, "\r\n"].concat());
                let text = format!("{}{}\r\n{body}", head(status, body.len()), more.collect::<String>());
                stream.write_all(text.as_bytes()).await
            }
            Act::AnswerAndClose(status, body) => {
                let _ = stream.write_all(format!("{}\r\n{body}", head(status, body.len())).as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
            Act::Cut => return,
            Act::CutBody(status, body) => {
                let text = format!("{}\r\n{}", head(status, body.len()), &body[..body.len() / 2]);
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Act::Silence => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return;
            }
            Act::Endless(status, bytes) => endless(&mut stream, status, bytes, book).await,
        };
        if write.is_err() {
            return;
        }
    }
}

async fn endless(
    stream: &mut (impl AsyncWrite + Unpin),
    status: u16,
    bytes: usize,
    book: &Mutex<Book>,
) -> std::io::Result<()> {
    stream.write_all(format!("{}\r\n", head(status, bytes)).as_bytes()).await?;
    let chunk = vec![b' '; 64 * 1024];
    for _ in 0..bytes / chunk.len() {
        stream.write_all(&chunk).await?;
        book.lock().unwrap().bytes_out += chunk.len();
    }
    Ok(())
}

fn head(status: u16, bytes: usize) -> String {
    format!("HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n")
}

/// One request, whole; nothing where the client is done.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let target = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default();
    Some(Seen { target, headers, body })
}
