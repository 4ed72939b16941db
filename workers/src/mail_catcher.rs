//! A small SMTP server for `demo` and `dev`: takes every message on loopback and hands it over. It relays nothing and keeps nothing.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest command line, in bytes.
const LINE_MAX: u64 = 4096;
/// Largest message, in bytes.
const MESSAGE_MAX: usize = 32 * 1024 * 1024;
/// How long a client may say nothing.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaughtMail {
    /// Envelope sender, without brackets.
    pub from: String,
    /// Envelope recipients, without brackets.
    pub recipients: Vec<String>,
    /// The message, dots unstuffed.
    pub message: Vec<u8>,
}

/// A running mail catcher. It ends when this is dropped.
pub struct MailCatcher {
    address: SocketAddr,
    stop: CancellationToken,
}

impl MailCatcher {
    /// Listens on `address` (port 0 for a free one). A message counts as taken once it is in `caught`.
    pub async fn start(address: SocketAddr, caught: mpsc::Sender<CaughtMail>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let sessions = TaskTracker::new();
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                // An accept that fails (no file handles, say) fails for this client only.
                if let Ok((stream, _)) = accepted {
                    let (caught, stopped) = (caught.clone(), stopped.clone());
                    sessions.spawn(async move {
                        tokio::select! {
                            () = stopped.cancelled() => {}
                            // A client that breaks off has nothing taken.
                            _ = session(stream, caught) => {}
                        }
                    });
                }
            }
        });
        Ok(Self { address, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MailCatcher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn session(stream: TcpStream, caught: mpsc::Sender<CaughtMail>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(16 * 1024, stream);
    let mut out: Vec<u8> = b"220 catcher.postrider.test ESMTP\r\n".to_vec();
    let (mut from, mut recipients) = (None, Vec::new());
    loop {
        // Answers of a pipelined group leave together.
        if stream.buffer().is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
        let Some(line) = read_line(&mut stream).await? else { return Ok(()) };
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => out.extend_from_slice(
                b"250-catcher.postrider.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 33554432\r\n",
            ),
            "MAIL" => {
                from = Some(path(&line));
                recipients.clear();
                out.extend_from_slice(b"250 2.1.0 Ok\r\n");
            }
            "RCPT" if from.is_some() => {
                recipients.push(path(&line));
                out.extend_from_slice(b"250 2.1.5 Ok\r\n");
            }
            "DATA" if !recipients.is_empty() => {
                out.extend_from_slice(b"354 Go ahead\r\n");
                stream.write_all(&out).await?;
                out.clear();
                let Some(message) = read_message(&mut stream).await? else {
                    stream.write_all(b"552 5.3.4 Too large\r\n").await?;
                    return Ok(());
                };
                let mail =
                    CaughtMail { from: from.take().unwrap_or_default(), recipients: std::mem::take(&mut recipients), message };
                let answer: &[u8] = match caught.send(mail).await {
                    Ok(()) => b"250 2.0.0 Ok: caught\r\n",
                    Err(_) => b"451 4.3.0 Nobody listens\r\n",
                };
                out.extend_from_slice(answer);
            }
            "RCPT" | "DATA" => out.extend_from_slice(b"503 5.5.1 Bad sequence\r\n"),
            "RSET" => {
                from = None;
                recipients.clear();
                out.extend_from_slice(b"250 2.0.0 Ok\r\n");
            }
            "HELO" | "NOOP" => out.extend_from_slice(b"250 2.0.0 Ok\r\n"),
            "QUIT" => {
                out.extend_from_slice(b"221 2.0.0 Bye\r\n");
                stream.write_all(&out).await?;
                return Ok(());
            }
            _ => out.extend_from_slice(b"502 5.5.2 Unknown command\r\n"),
        }
    }
}

/// A command line without its end; nothing at the end of the stream.
async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let read = timeout(IDLE_MAX, stream.take(LINE_MAX).read_until(b'\n', &mut line)).await??;
    if read == 0 || !line.ends_with(b"\n") {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// A message up to its final dot; nothing if it is too large.
async fn read_message(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    loop {
        let start = message.len();
        let read = timeout(IDLE_MAX, stream.take(MESSAGE_MAX as u64).read_until(b'\n', &mut message)).await??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if &message[start..] == b".\r\n" {
            message.truncate(start);
            return Ok(Some(message));
        }
        if message[start] == b'.' {
            message.remove(start);
        }
        if message.len() > MESSAGE_MAX {
            return Ok(None);
        }
    }
}

/// The address of `MAIL FROM:<a@b> SIZE=1`.
fn path(line: &str) -> String {
    let inside = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map_or_else(String::new, |(address, _)| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipelined_message_arrives_unstuffed_with_its_envelope() {
        let (sender, mut caught) = mpsc::channel(1);
        let catcher = MailCatcher::start(([127, 0, 0, 1], 0).into(), sender).await.unwrap();
        let mut client = BufReader::new(TcpStream::connect(catcher.address()).await.unwrap());
        client
            .write_all(b"EHLO x\r\nMAIL FROM:<a@shop.test> SIZE=9\r\nRCPT TO:<b@dest.test>\r\nRCPT TO:<c@dest.test>\r\nDATA\r\n")
            .await
            .unwrap();
        let mut codes = String::new();
        while !codes.ends_with("354") {
            let mut line = String::new();
            assert!(client.read_line(&mut line).await.unwrap() > 0, "the catcher hung up after {codes}");
            codes = format!("{codes} {}", &line[..3]);
        }
        client.write_all(b"Subject: s\r\n\r\n..dot\r\n.\r\nQUIT\r\n").await.unwrap();
        let mail = caught.recv().await.unwrap();
        assert_eq!(
            (mail.from.as_str(), mail.recipients.join(" ").as_str()),
            ("a@shop.test", "b@dest.test c@dest.test")
        );
        assert_eq!(mail.message, b"Subject: s\r\n\r\n.dot\r\n");
    }

    #[tokio::test]
    async fn a_message_without_an_end_is_not_taken() {
        let (sender, mut caught) = mpsc::channel(1);
        let catcher = MailCatcher::start(([127, 0, 0, 1], 0).into(), sender).await.unwrap();
        let mut client = TcpStream::connect(catcher.address()).await.unwrap();
        client.write_all(b"MAIL FROM:<a@s.test>\r\nRCPT TO:<b@d.test>\r\nDATA\r\nhalf").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        drop(catcher);
        assert!(caught.recv().await.is_none());
    }
}
