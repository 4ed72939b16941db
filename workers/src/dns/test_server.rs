//! A DNS server for tests that says what a script tells it, late or never.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::UdpSocket, time::sleep};

use crate::config::DnsConfig;

/// What it says about a name.
#[derive(Clone, Copy)]
pub(crate) enum TestReply {
    /// That there is no such domain.
    NoSuchDomain,
    /// That it cannot say.
    Failure,
    /// This one mail exchanger, as the labels of its name with their lengths.
    Exchanger(&'static [u8]),
    /// Nothing.
    Nothing,
    /// That there is no such domain, after this time.
    Late(Duration),
}

/// Names that were asked about, with the numbers of the questions.
type Questions = BTreeSet<(String, [u8; 2])>;

/// A running server; it ends with its runtime.
pub(crate) struct TestServer {
    address: SocketAddr,
    asked: Arc<Mutex<Questions>>,
}

impl TestServer {
    /// Answers by a script, which is given the name in text; the root is an empty one.
    pub(crate) async fn start(script: impl Fn(&str) -> TestReply + Send + 'static) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Questions::new()));
        let told = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let name = name(&packet[12..length]);
                let reply = script(&name);
                told.lock().unwrap().insert((name, [packet[0], packet[1]]));
                let (answer, after) = match reply {
                    TestReply::Nothing => continue,
                    TestReply::Late(after) => (answer(&packet[..length], TestReply::NoSuchDomain), after),
                    reply => (answer(&packet[..length], reply), Duration::ZERO),
                };
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    sleep(after).await;
                    let _ = socket.send_to(&answer, from).await;
                });
            }
        });
        Self { address, asked }
    }

    /// A configuration that asks it for groups and for recipients.
    pub(crate) fn config(&self, patience: Duration) -> DnsConfig {
        DnsConfig { groups: true, check: true, servers: vec![self.address], patience }
    }

    /// Names that were asked about, in their order, each as often as there were questions about it; one that is sent again is the same.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }
}

/// The name of the first question.
fn name(mut question: &[u8]) -> String {
    let mut labels = Vec::new();
    while let [length, rest @ ..] = question
        && *length > 0
    {
        let (label, rest) = rest.split_at(usize::from(*length));
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        question = rest;
    }
    labels.join(".")
}

/// The question with an answer in it.
fn answer(question: &[u8], reply: TestReply) -> Vec<u8> {
    // What comes after the name, its type and its class is additional, and left out.
    let labels = question[12..].iter().scan(0_usize, |left, byte| {
        if *left > 0 {
            *left -= 1;
            return Some(());
        }
        *left = usize::from(*byte);
        (*byte > 0).then_some(())
    });
    let end = 12 + labels.count() + 1 + 4;
    let mut packet = question[..end].to_vec();
    let code = match reply {
        TestReply::Failure => 2,
        TestReply::Exchanger(_) => 0,
        TestReply::NoSuchDomain | TestReply::Nothing | TestReply::Late(_) => 3,
    };
    (packet[2], packet[3]) = (0x80 | (packet[2] & 1), 0x80 | code);
    packet[6..12].fill(0);
    if let TestReply::Exchanger(host) = reply {
        packet[7] = 1;
        // The name of the question, MX, IN, an hour, and a preference of ten.
        packet.extend([0xc0, 12, 0, 15, 0, 1, 0, 0, 14, 16, 0, u8::try_from(host.len() + 2).unwrap(), 0, 10]);
        packet.extend(host);
    }
    packet
}
