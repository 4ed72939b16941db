//! A server that follows a script. Whatever the client does beside the script fails the test.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};

use crate::{FLIGHT, GO_ON, ON_THE_WIRE, PIPELINING};

const PATIENCE: Duration = Duration::from_secs(10);

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One connection, seen from the server.
pub struct Conn {
    stream: Box<dyn Stream>,
    /// The how-many-th connection it is, from 0.
    pub number: usize,
}

pub struct Server {
    pub port: u16,
    accepted: Arc<AtomicUsize>,
    scripts: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Runs `script` for every connection.
    pub async fn start<F>(script: impl Fn(Conn) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let scripts = Arc::new(Mutex::new(Vec::new()));
        let accept = tokio::spawn({
            let (accepted, scripts) = (Arc::clone(&accepted), Arc::clone(&scripts));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let number = accepted.fetch_add(1, Ordering::SeqCst);
                    let conn = Conn { stream: Box::new(stream), number };
                    scripts.lock().unwrap().push(tokio::spawn(script(conn)));
                }
            }
        });
        Self { port, accepted, scripts, accept }
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until every script has ended, and fails if one of them did. Drop the relay first where a script waits for the
    /// end of its connection.
    pub async fn finish(self) {
        self.accept.abort();
        let scripts = std::mem::take(&mut *self.scripts.lock().unwrap());
        assert!(!scripts.is_empty(), "nobody connected");
        for script in scripts {
            timeout(PATIENCE, script).await.expect("a script waits in vain").expect("a script was not followed");
        }
    }
}

impl Conn {
    pub async fn say(&mut self, text: &str) {
        self.say_bytes(text.as_bytes()).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Reads exactly `expected`; more than that, sent without waiting for an answer, is wrong too.
    pub async fn expect(&mut self, expected: &str) {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            let read = self.stream.read_buf(&mut seen);
            if timeout(PATIENCE, read).await.expect("the client says nothing").unwrap() == 0 {
                break;
            }
        }
        assert_eq!(String::from_utf8_lossy(&seen), expected);
    }

    /// Reads one line, whatever it is; empty at the end of the connection.
    pub async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            match self.stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(line).unwrap()
    }

    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A connection that is reset has ended as well.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("the client does not hang up");
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Greets and answers EHLO.
    pub async fn welcome(&mut self, offers: &str) {
        self.say("220 relay.example ESMTP\r\n").await;
        self.expect("EHLO worker.example\r\n").await;
        self.say(offers).await;
    }

    /// Takes one message to ann.
    pub async fn take(&mut self) {
        self.expect(FLIGHT).await;
        self.say(GO_ON).await;
        self.expect(ON_THE_WIRE).await;
        self.say("250 2.0.0 Ok: queued\r\n").await;
    }

    pub async fn tls(self, config: Arc<rustls::ServerConfig>) -> Result<Self, std::io::Error> {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let stream = acceptor.accept(self.stream).await?;
        Ok(Self { stream: Box::new(stream), number: self.number })
    }
}

/// A relay that follows the rules and takes everything; says what it read, line by line, to `note`.
pub async fn obliging(mut conn: Conn, note: impl Fn(&str)) {
    conn.say("220 relay.example ESMTP\r\n").await;
    loop {
        let line = conn.line().await;
        note(line.trim_end());
        match line.get(..4).unwrap_or_default() {
            "EHLO" => conn.say(PIPELINING).await,
            "DATA" => {
                conn.say("354 Go on\r\n").await;
                while conn.line().await != ".\r\n" {}
                conn.say("250 2.0.0 Ok\r\n").await;
            }
            "QUIT" => {
                conn.say("221 2.0.0 Bye\r\n").await;
                return;
            }
            "" => return,
            _ => conn.say("250 2.0.0 Ok\r\n").await,
        }
    }
}
