//! The same against Postfix's smtp-sink, which nobody here wrote. Comes with the package postfix.

use std::{
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use postrider_workers::{
    policy::outcome::{Class, Outcome, Stage},
    transport::smtp::{Relay, RelaySettings},
};

use crate::{MESSAGE, assert_accepted, assert_refused, assert_unknown, deliver, deliver_to, settings};

struct Sink {
    child: Child,
    port: u16,
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> &'static Path {
    ["/usr/sbin/smtp-sink", "/usr/lib/postfix/sbin/smtp-sink"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .expect("smtp-sink is not installed: install the package postfix")
}

async fn sink(options: &[&str]) -> Sink {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // It refuses to serve as root, and to change its user as anybody else.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let child = Command::new(program())
        .args(if is_root { &["-u", "nobody"][..] } else { &[] })
        .args(options)
        .args([&format!("127.0.0.1:{port}"), "100"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let sink = Sink { child, port };
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "smtp-sink does not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sink
}

async fn first_outcome(options: &[&str]) -> Outcome {
    let sink = sink(options).await;
    deliver(&Relay::new(settings(sink.port)).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_go_through_a_few_connections_with_and_without_pipelining() {
    for options in [&["-v"][..0], &["-p"], &["-e"]] {
        let sink = sink(options).await;
        let settings = RelaySettings { messages_per_connection: 50, ..settings(sink.port) };
        let relay = Arc::new(Relay::new(settings).unwrap());
        let sends: Vec<_> = (0..20)
            .map(|_| {
                let relay = Arc::clone(&relay);
                tokio::spawn(async move {
                    for _ in 0..50 {
                        assert_accepted(&deliver_to(&relay, &["ann", "bob"], MESSAGE).await);
                        assert!(relay.open_connections() <= 4);
                    }
                })
            })
            .collect();
        for send in sends {
            send.await.unwrap();
        }
        relay.close().await;
        assert_eq!(relay.open_connections(), 0);
    }
}

#[tokio::test]
async fn a_sink_that_drops_the_line_after_the_dot_leaves_an_unknown() {
    let outcome = first_outcome(&["-q", "."]).await;
    assert_unknown(&outcome);
}

#[tokio::test]
async fn a_sink_that_drops_the_line_earlier_leaves_no_doubt() {
    for (command, stage) in
        [("EHLO", Stage::Hello), ("MAIL", Stage::MailFrom), ("RCPT", Stage::RcptTo), ("DATA", Stage::Data)]
    {
        let outcome = first_outcome(&["-q", command]).await;
        let class = if stage == Stage::Hello { Class::Unavailable } else { Class::Transient };
        assert_refused(&outcome, class, stage);
    }
}

#[tokio::test]
async fn a_sink_that_refuses_is_understood() {
    for (options, class, stage) in [
        (&["-r", "."][..], Class::Transient, Stage::Body),
        (&["-f", "."], Class::Message, Stage::Body),
        (&["-r", "MAIL", "-b", "421 4.7.0 closing"], Class::Throttled, Stage::MailFrom),
        (&["-r", "DATA"], Class::Transient, Stage::Data),
        (&["-f", "CONNECT"], Class::Config, Stage::Connect),
    ] {
        let outcome = first_outcome(options).await;
        assert_refused(&outcome, class, stage);
    }
    let outcome = first_outcome(&["-f", "RCPT"]).await;
    let Outcome::Refused { refusal, recipients } = outcome else { panic!("{outcome:?}") };
    assert_eq!((refusal.class, recipients.len()), (Class::Recipient, 1));
}
