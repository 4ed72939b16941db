//! Silence and hang-ups at every stage: certain before the final dot, unknown after it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postrider_workers::{
    policy::outcome::{Class, Outcome, Stage},
    transport::smtp::{Auth, AuthMechanism, Relay, Settings, StageLimits},
};
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    FLIGHT, GO_ON, ON_THE_WIRE, PIPELINING, assert_refused, assert_unknown, deliver, deliver_to, of_session,
    server::{Conn, Server},
    session,
};

const SHORT: Duration = Duration::from_millis(50);

fn short_limits() -> StageLimits {
    StageLimits { connect: SHORT * 20, tls: SHORT, command: SHORT, data: SHORT, body: SHORT, answer: SHORT }
}

/// The steps of a conversation; the server follows them and stops before the step named by its index.
const STEPS: [(Stage, &str, &str); 6] = [
    (Stage::Connect, "", "220 relay.example\r\n"),
    (Stage::Hello, "EHLO worker.example\r\n", "250-relay.example\r\n250 AUTH PLAIN\r\n"),
    (Stage::Auth, "AUTH PLAIN AGFwcABzM2NyZXQ=\r\n", "235 Ok\r\n"),
    (Stage::MailFrom, "MAIL FROM:<from@shop.example>\r\n", "250 Ok\r\n"),
    (Stage::RcptTo, "RCPT TO:<ann@dest.example>\r\n", "250 Ok\r\n"),
    (Stage::Data, "DATA\r\n", "354 Go on\r\n"),
];

async fn follow(conn: &mut Conn, until: usize, last_answer: &str) {
    for (index, (_, command, answer)) in STEPS.iter().enumerate().take(until + 1) {
        conn.expect(command).await;
        conn.say(if index == until { last_answer } else { answer }).await;
    }
}

fn with_auth(port: u16) -> Relay {
    let auth = Auth { username: "app".into(), password: "s3cret".to_owned().into(), mechanism: AuthMechanism::Auto };
    Relay::new(of_session(Settings { auth: Some(auth), limits: short_limits(), ..session(port) })).unwrap()
}

/// Before the envelope nothing was tried.
fn class_of(stage: Stage) -> Class {
    if stage.is_before_the_envelope() { Class::Unavailable } else { Class::Transient }
}

#[tokio::test]
async fn a_relay_that_falls_silent_is_given_up_at_every_stage() {
    for (until, (stage, ..)) in STEPS.iter().enumerate() {
        let server = Server::start(move |mut conn| async move {
            // Half a line is silence too.
            follow(&mut conn, until, "2").await;
            assert_eq!(conn.rest().await, "");
        })
        .await;
        let started = Instant::now();
        let outcome = deliver(&with_auth(server.port)).await;
        let answer = assert_refused(&outcome, class_of(*stage), *stage);
        assert!(answer.text.starts_with("the relay did not answer within 50ms"), "{answer}");
        assert_eq!(answer.text.contains("is this port implicit TLS"), *stage == Stage::Connect, "{answer}");
        assert!(started.elapsed() < Duration::from_secs(5));
        server.finish().await;
    }
}

#[tokio::test]
async fn a_relay_that_hangs_up_before_the_message_has_certainly_not_taken_it() {
    for (until, (stage, ..)) in STEPS.iter().enumerate() {
        let server = Server::start(move |mut conn| async move { follow(&mut conn, until, "").await }).await;
        assert_refused(&deliver(&with_auth(server.port)).await, class_of(*stage), *stage);
        assert_eq!(server.accepted(), 1, "a fresh connection is not tried twice");
        server.finish().await;
    }
}

#[tokio::test]
async fn silence_after_the_dot_is_unknown() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say(GO_ON).await;
        conn.expect(ON_THE_WIRE).await;
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let relay = Relay::new(of_session(Settings { limits: short_limits(), ..session(server.port) })).unwrap();
    assert_unknown(&deliver(&relay).await);
    assert_eq!(relay.open_connections(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_hang_up_after_the_dot_is_unknown_even_in_the_middle_of_a_reply() {
    for answer in ["", "2", "250 2.0.0 Ok", "250-2.0.0 Ok\r\n"] {
        let server = Server::start(move |mut conn| async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            conn.expect(ON_THE_WIRE).await;
            conn.say(answer).await;
        })
        .await;
        assert_unknown(&deliver(&crate::relay(server.port)).await);
        server.finish().await;
    }
}

/// A message that fits into no buffer between here and the relay.
fn huge() -> Vec<u8> {
    b"0123456789\r\n".repeat(2_000_000)
}

#[tokio::test]
async fn a_relay_that_stops_reading_in_the_middle_has_certainly_not_taken_the_message() {
    let is_over = Arc::new(Notify::new());
    let end = Arc::clone(&is_over);
    let server = Server::start(move |mut conn| {
        let end = Arc::clone(&end);
        async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            end.notified().await;
        }
    })
    .await;
    let relay = Relay::new(of_session(Settings { limits: short_limits(), ..session(server.port) })).unwrap();
    assert_refused(&deliver_to(&relay, &["ann"], &huge()).await, Class::Transient, Stage::Body);
    is_over.notify_one();
    server.finish().await;
}

#[tokio::test]
async fn a_relay_that_says_why_it_stopped_reading_is_heard() {
    let is_over = Arc::new(Notify::new());
    let end = Arc::clone(&is_over);
    let server = Server::start(move |mut conn| {
        let end = Arc::clone(&end);
        async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            conn.line().await;
            conn.say("552 5.3.4 That is enough\r\n").await;
            end.notified().await;
        }
    })
    .await;
    let relay = Relay::new(of_session(Settings { limits: short_limits(), ..session(server.port) })).unwrap();
    let outcome = deliver_to(&relay, &["ann"], &huge()).await;
    assert_eq!(assert_refused(&outcome, Class::Unsupported, Stage::Body).text, "That is enough");
    is_over.notify_one();
    server.finish().await;
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    assert_refused(&deliver(&crate::relay(port)).await, Class::Unavailable, Stage::Connect);
}

#[tokio::test]
async fn a_greeting_that_refuses_needs_a_person_unless_it_is_temporary() {
    for (greeting, class) in [
        ("554 5.7.1 not you\r\n", Class::Config),
        ("421 4.7.0 too many connections\r\n", Class::Throttled),
        ("421 starting\r\n", Class::Unavailable),
        ("521 5.3.2 no mail here\r\n", Class::Config),
    ] {
        let server = Server::start(move |mut conn| async move {
            conn.say(greeting).await;
            assert_eq!(conn.rest().await, "");
        })
        .await;
        assert_refused(&deliver(&crate::relay(server.port)).await, class, Stage::Connect);
        server.finish().await;
    }
}

#[tokio::test]
async fn endless_replies_are_given_up() {
    for chunk in ["250-more\r\n".repeat(1000), "2".repeat(10_000), "\0\u{1}\u{2}\n".repeat(100)] {
        let server = Server::start(move |mut conn| {
            let chunk = chunk.clone();
            async move {
                conn.say("220 hi\r\n").await;
                conn.expect("EHLO worker.example\r\n").await;
                conn.say(&chunk).await;
                assert_eq!(conn.rest().await, "");
            }
        })
        .await;
        let outcome = deliver(&crate::relay(server.port)).await;
        assert!(
            matches!(&outcome, Outcome::Refused { refusal, .. } if refusal.class == Class::Unavailable),
            "{outcome:?}"
        );
        server.finish().await;
    }
}
