//! Conversations over a connection, with a queue in a file.

use std::sync::Arc;

use postrider_schemas::JobId;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
};

use super::*;
use crate::{
    handle::{Shared, tests::started},
    keys::{KeyRecord, Keys},
};

const MESSAGE: &str = "From: a@shop.example\r\nSubject: s\r\n\r\nt\r\n";

struct Client {
    stream: BufReader<TcpStream>,
    gateway: Shared,
    key: String,
    _folder: tempfile::TempDir,
}

/// A client that has said EHLO and nothing else, without TLS.
async fn connected(change: impl FnOnce(&mut KeyRecord)) -> Client {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, key) = started(folder.path(), change).await;
    let gateway: Shared = Arc::new(gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let served = Arc::clone(&gateway);
    let settings = PortSettings {
        tls: None,
        is_implicit: false,
        plaintext_auth: true,
        size: 100_000,
        recipients: 50,
        derive_key: false,
    };
    tokio::spawn(async move {
        let (stream, peer) = listener.accept().await.unwrap();
        run(&served, stream, peer.ip(), &settings).await
    });
    let mut client = Client { stream: BufReader::new(stream), gateway, key, _folder: folder };
    assert_eq!(client.answers(1).await, ["220"]);
    assert_eq!(client.say("EHLO x\r\n", 1).await, ["250"]);
    client
}

impl Client {
    /// The codes of so many answers.
    async fn answers(&mut self, count: usize) -> Vec<String> {
        let mut codes = Vec::new();
        while codes.len() < count {
            let line = self.line().await;
            if line.as_bytes()[3] == b' ' {
                codes.push(line[..3].to_owned());
            }
        }
        codes
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(20), self.stream.read_line(&mut line)).await.unwrap().unwrap();
        assert!(read > 0, "the gateway hung up");
        line
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn say(&mut self, text: &str, answers: usize) -> Vec<String> {
        self.write(text).await;
        self.answers(answers).await
    }

    async fn authenticate(&mut self) {
        let text = STANDARD.encode(format!("\0any\0{}", self.key));
        assert_eq!(self.say(&format!("AUTH PLAIN {text}\r\n"), 1).await, ["235"]);
    }

    /// Sends a message in one write, and gives the last answer.
    async fn send(&mut self, message: &str) -> String {
        self.write(&format!("MAIL FROM:<a@shop.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n{message}.\r\n")).await;
        assert_eq!(self.answers(3).await, ["250", "250", "354"]);
        self.line().await
    }
}

fn id_of(answer: &str) -> JobId {
    let id = answer.strip_prefix("250 2.0.0 Queued as ").unwrap_or_else(|| panic!("{answer}"));
    id.trim_end().parse().unwrap()
}

#[tokio::test]
async fn pipelined_messages_are_taken_and_have_ids() {
    let mut client = connected(|_| ()).await;
    client.authenticate().await;
    let first = id_of(&client.send(MESSAGE).await);
    assert_ne!(first, id_of(&client.send(MESSAGE).await), "without a key each is a job of its own");
    let keyed = format!("X-Postrider-Idempotency-Key: k\r\n{MESSAGE}");
    assert_eq!(id_of(&client.send(&keyed).await), id_of(&client.send(&keyed).await));
    let (head, body) = MESSAGE.split_at(10);
    let chunks = format!(
        "MAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nBDAT {}\r\n{head}BDAT {} LAST\r\n{body}NOOP\r\n",
        head.len(),
        body.len()
    );
    client.write(&chunks).await;
    assert_eq!(client.answers(3).await, ["250", "250", "250"]);
    id_of(&client.line().await);
    assert_eq!(client.answers(1).await, ["250"], "what follows the last chunk is a command");
}

#[tokio::test]
async fn what_is_not_taken_is_told_with_the_right_code() {
    let mut client = connected(|record| record.sender_domains = Some(vec!["shop.example".to_owned()])).await;
    assert_eq!(client.say("MAIL FROM:<a@shop.example>\r\nBDAT 3 LAST\r\nabcNOOP\r\n", 3).await, ["530", "503", "250"]);
    client.authenticate().await;
    for (message, code) in [
        (MESSAGE.replace("shop.example", "bank.example"), "550 5.7.1"),
        (MESSAGE.replace("t\r\n", "t\n.\nMAIL FROM:<x@y.example>\r\n"), "550 5.6.0"),
        (MESSAGE.replace("From", "Form"), "550 5.6.0"),
        (format!("{MESSAGE}{}\r\n", "x".repeat(100_000)), "552 5.3.4"),
        (format!("X-Postrider-Lane: fast\r\n{MESSAGE}"), "550 5.6.0"),
    ] {
        let answer = client.send(&message).await;
        assert!(answer.starts_with(code), "{code}: {answer}");
    }
    id_of(&client.send(MESSAGE).await);
    client.gateway.queue.close().await;
    let answer = client.send(MESSAGE).await;
    assert!(answer.starts_with("451 4.3.0"), "without the queue's confirm nothing is promised: {answer}");
    client.gateway.keys.store(Arc::new(Keys::default()));
    let answer = client.send(MESSAGE).await;
    assert!(answer.starts_with("550 5.7.1"), "a revoked key: {answer}");
    client.gateway.stop.cancel();
    assert_eq!(client.answers(1).await, ["421"]);
}

#[tokio::test]
async fn wrong_keys_lines_and_lone_line_ends_end_a_connection() {
    let mut client = connected(|_| ()).await;
    let wrong = STANDARD.encode("\0any\0prk_a_b");
    for code in ["535", "535", "421"] {
        assert_eq!(client.say(&format!("AUTH PLAIN {wrong}\r\n"), 1).await, [code]);
    }
    for text in ["NOOP\nMAIL FROM:<>\r\n".to_owned(), "x".repeat(LINE_MAX + 1)] {
        let mut client = connected(|_| ()).await;
        assert_eq!(client.say(&text, 1).await, ["500"]);
        let mut rest = String::new();
        assert_eq!(client.stream.read_line(&mut rest).await.unwrap_or_default(), 0, "{rest}");
    }
}

#[tokio::test]
async fn a_key_is_held_to_its_rate() {
    let mut client = connected(|record| record.rate = Some(1)).await;
    client.authenticate().await;
    id_of(&client.send(MESSAGE).await);
    let answer = client.send(MESSAGE).await;
    assert!(answer.starts_with("450 4.7.1"), "{answer}");
}

#[test]
fn the_password_is_the_key_whatever_the_user_is_called() {
    assert_eq!(password(Mechanism::Plain, "AHVzZXIAcHJrXzE=").as_deref(), Some("prk_1"));
    assert_eq!(password(Mechanism::Plain, "YXV0aHoAdXNlcgBwcmtfMQ==").as_deref(), Some("prk_1"));
    assert_eq!(password(Mechanism::Login, "cHJrXzE=").as_deref(), Some("prk_1"));
    for text in ["", "=", "cHJrXzE=", "!"] {
        assert_eq!(password(Mechanism::Plain, text), None, "{text}");
    }
}

#[test]
fn clients_keep_what_the_queue_did_not_take_and_give_up_the_rest() {
    let text = |kind| refusal(&Problem::new(kind, "Why.\r\nMore."));
    assert_eq!(text(Kind::Unavailable), "451 4.3.0 Why.  More.");
    assert_eq!(text(Kind::SenderForbidden), "550 5.7.1 Why.  More.");
    assert_eq!(text(Kind::RateLimited), "450 4.7.1 Why.  More.");
}
