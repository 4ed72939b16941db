//! The relay transport against a scripted server, byte by byte, and against smtp-sink.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail it")]

mod auth;
mod claim;
mod encryption;
mod envelope;
mod lost;
mod pool;
mod recipient_batches;
mod refusals;
mod server;
mod sink;

use std::time::Duration;

use postrider_schemas::EmailAddress;
use postrider_workers::{
    policy::outcome::{Answer, Class, Outcome, RecipientRefusal, Stage},
    transport::smtp::{Mail, Relay, RelaySettings, Settings},
};

/// A message in order.
const MESSAGE: &[u8] = b"Subject: hello\r\n\r\nhello\r\n";
/// What goes over the wire after 354.
const ON_THE_WIRE: &str = "Subject: hello\r\n\r\nhello\r\n.\r\n";
/// What a relay offers here, unless the test is about that.
const PIPELINING: &str = "250-relay.example\r\n250 PIPELINING\r\n";
/// The envelope of a message to ann, as one flight.
const FLIGHT: &str = "MAIL FROM:<from@shop.example>\r\nRCPT TO:<ann@dest.example>\r\nDATA\r\n";
/// The answers that a flight with one recipient hopes for.
const GO_ON: &str = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 Go on\r\n";

fn session(port: u16) -> Settings {
    Settings { hello: "worker.example".into(), ..Settings::new("127.0.0.1", port) }
}

fn settings(port: u16) -> RelaySettings {
    of_session(session(port))
}

/// A relay with usual settings but for these of its sessions.
fn of_session(session: Settings) -> RelaySettings {
    RelaySettings {
        session,
        connections: 4,
        messages_per_connection: 100,
        idle: Duration::from_secs(30),
        line: Duration::from_mins(5),
        answers: postrider_workers::config::shipped_answers(),
    }
}

fn relay(port: u16) -> Relay {
    Relay::new(settings(port)).unwrap()
}

fn address(text: &str) -> EmailAddress {
    EmailAddress::parse(text).unwrap()
}

/// Delivers `message` to these users of dest.example.
async fn deliver_to(relay: &Relay, users: &[&str], message: &[u8]) -> Outcome {
    let from = address("from@shop.example");
    let recipients: Vec<_> = users.iter().map(|user| address(&format!("{user}@dest.example"))).collect();
    let recipients: Vec<_> = recipients.iter().collect();
    let mail = Mail { from: Some(&from), recipients: &recipients, message };
    let delivery = relay.deliver(mail, std::future::ready(true));
    tokio::time::timeout(Duration::from_secs(20), delivery).await.expect("the delivery has a limit")
}

async fn deliver(relay: &Relay) -> Outcome {
    deliver_to(relay, &["ann"], MESSAGE).await
}

/// Waits until `condition` holds.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let what = what.to_owned();
    async move {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(tokio::time::Instant::now() < deadline, "still not: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[track_caller]
fn assert_accepted(outcome: &Outcome) -> &[RecipientRefusal] {
    match outcome {
        Outcome::Accepted { refused, .. } => refused,
        other => panic!("not accepted: {other:?}"),
    }
}

/// Refused as a whole; returns the answer.
#[track_caller]
fn assert_refused(outcome: &Outcome, class: Class, stage: Stage) -> &Answer {
    match outcome {
        Outcome::Refused { refusal, recipients } => {
            assert_eq!((refusal.class, refusal.answer.stage), (class, stage), "{outcome:?}");
            assert!(recipients.is_empty(), "{outcome:?}");
            &refusal.answer
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_unknown(outcome: &Outcome) -> &Answer {
    match outcome {
        Outcome::Unknown(answer) => {
            assert_eq!(answer.stage, Stage::Body);
            answer
        }
        other => panic!("not unknown: {other:?}"),
    }
}
