//! Refusals: whose they are, and what becomes of the connection.

use postrider_workers::policy::outcome::{Class, EnhancedCode, Outcome, Stage};

use crate::{
    FLIGHT, GO_ON, MESSAGE, ON_THE_WIRE, PIPELINING, assert_accepted, assert_refused, assert_unknown, deliver,
    deliver_to, relay, server::Server,
};

const FLIGHT_OF_TWO: &str =
    "MAIL FROM:<from@shop.example>\r\nRCPT TO:<ann@dest.example>\r\nRCPT TO:<bob@dest.example>\r\nDATA\r\n";

/// The first message meets `answers` to its flight of two; the second one goes through on the same connection after RSET.
async fn refused_and_reset(answers: &'static str) -> Outcome {
    let server = Server::start(move |mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT_OF_TWO).await;
        conn.say(answers).await;
        conn.expect("RSET\r\n").await;
        conn.say("250 2.0.0 Ok\r\n").await;
        conn.take().await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob"], MESSAGE).await;
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 1);
    drop(relay);
    server.finish().await;
    outcome
}

/// The message meets `answers` to its flight of two, and the client hangs up without another byte.
async fn refused_and_closed(answers: &'static str) -> Outcome {
    let server = Server::start(move |mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT_OF_TWO).await;
        conn.say(answers).await;
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob"], MESSAGE).await;
    server.finish().await;
    assert_eq!(relay.open_connections(), 0);
    outcome
}

#[tokio::test]
async fn accepted_recipients_get_the_message_and_refused_ones_are_named() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        let line = conn.line().await;
        assert_eq!(line, "MAIL FROM:<from@shop.example>\r\n");
        for _ in 0..5 {
            conn.line().await;
        }
        conn.say("250 Ok\r\n250 Ok\r\n550 5.1.1 <bob@dest.example>: unknown\r\n451 4.3.0 later\r\n450 4.2.1 slow\r\n354 Go on\r\n")
            .await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n").await;
        // No RSET after a message that was taken.
        conn.take().await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob", "cid", "dan"], MESSAGE).await;
    let refused: Vec<_> = assert_accepted(&outcome).iter().map(|one| (one.index, one.refusal.class)).collect();
    assert_eq!(refused, [(1, Class::Recipient), (2, Class::Transient), (3, Class::Throttled)]);
    assert!(!format!("{outcome:?}").contains("bob@"), "{outcome:?}");
    assert_accepted(&deliver(&relay).await);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn when_everybody_is_refused_each_gets_an_answer_and_the_mildest_speaks_for_all() {
    let outcome =
        refused_and_reset("250 Ok\r\n550 5.1.1 no\r\n451 4.3.0 later\r\n554 5.5.1 No valid recipients\r\n").await;
    let Outcome::Refused { refusal, recipients } = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.class, Class::Transient);
    assert_eq!(refusal.answer.enhanced, Some(EnhancedCode(4, 3, 0)));
    let classes: Vec<_> = recipients.iter().map(|one| (one.index, one.refusal.class)).collect();
    assert_eq!(classes, [(0, Class::Recipient), (1, Class::Transient)]);
}

#[tokio::test]
async fn a_relay_that_wants_a_message_for_nobody_gets_a_lone_dot() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say("250 Ok\r\n550 5.1.1 no\r\n354 Go on\r\n").await;
        conn.expect(".\r\n").await;
        conn.say("554 5.5.1 No valid recipients\r\n").await;
        conn.expect("RSET\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.take().await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let Outcome::Refused { refusal, recipients } = deliver(&relay).await else { panic!() };
    assert_eq!((refusal.class, recipients.len()), (Class::Recipient, 1));
    assert_accepted(&deliver(&relay).await);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_refused_sender_refuses_the_message() {
    let outcome = refused_and_reset(
        "550 5.7.1 sender blocked\r\n503 5.5.1 need MAIL\r\n503 5.5.1 need MAIL\r\n503 5.5.1 need RCPT\r\n",
    )
    .await;
    let answer = assert_refused(&outcome, Class::Sender, Stage::MailFrom);
    assert_eq!(answer.to_string(), "mail_from: 550 5.7.1 sender blocked");
}

#[tokio::test]
async fn a_relay_that_refuses_the_sender_but_wants_the_message_is_left() {
    let outcome = refused_and_closed("550 5.7.1 no\r\n250 Ok\r\n550 no\r\n354 Go on\r\n").await;
    assert_refused(&outcome, Class::Sender, Stage::MailFrom);
}

#[tokio::test]
async fn refused_data_refuses_the_message() {
    let outcome = refused_and_reset("250 Ok\r\n250 Ok\r\n550 5.1.1 no\r\n451 4.3.0 queue full\r\n").await;
    assert_refused(&outcome, Class::Transient, Stage::Data);
    let outcome = refused_and_reset("250 Ok\r\n250 Ok\r\n250 Ok\r\n554 5.7.1 policy\r\n").await;
    assert_refused(&outcome, Class::Message, Stage::Data);
}

#[tokio::test]
async fn a_refused_message_is_refused_for_all_and_the_connection_goes_on() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say(GO_ON).await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("554-5.7.1 Rejected by\r\n554-5.7.1 our policy\r\n554 5.7.1 for good\r\n").await;
        conn.expect("RSET\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.take().await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver(&relay).await;
    let answer = assert_refused(&outcome, Class::Message, Stage::Body);
    assert_eq!(answer.to_string(), "body: 554 5.7.1 Rejected by our policy for good");
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 1);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn without_pipelining_nothing_follows_a_refusal_but_a_reset() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250 relay.example\r\n").await;
        for (command, answer) in [
            ("MAIL FROM:<from@shop.example>\r\n", "450 4.3.0 later\r\n"),
            ("RSET\r\n", "250 Ok\r\n"),
            ("MAIL FROM:<from@shop.example>\r\n", "250 Ok\r\n"),
            ("RCPT TO:<ann@dest.example>\r\n", "550 5.1.1 no\r\n"),
            ("RSET\r\n", "250 Ok\r\n"),
        ] {
            conn.expect(command).await;
            conn.say(answer).await;
        }
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    assert_refused(&deliver(&relay).await, Class::Transient, Stage::MailFrom);
    let Outcome::Refused { refusal, recipients } = deliver(&relay).await else { panic!() };
    assert_eq!((refusal.class, recipients.len()), (Class::Recipient, 1));
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_reset_that_fails_ends_the_connection() {
    for answer in ["550 no\r\n", "250 Ok\r\n250 Ok\r\n", "garbage\r\n"] {
        let server = Server::start(move |mut conn| async move {
            conn.welcome(PIPELINING).await;
            if conn.number == 1 {
                conn.take().await;
            } else {
                conn.expect(FLIGHT).await;
                conn.say("450 4.3.0 no\r\n503 no\r\n503 no\r\n").await;
                conn.expect("RSET\r\n").await;
                conn.say(answer).await;
            }
            assert_eq!(conn.rest().await, "");
        })
        .await;
        let relay = relay(server.port);
        assert_refused(&deliver(&relay).await, Class::Transient, Stage::MailFrom);
        assert_accepted(&deliver(&relay).await);
        assert_eq!(server.accepted(), 2);
        drop(relay);
        server.finish().await;
    }
}

#[tokio::test]
async fn after_421_the_relay_is_left_without_another_word() {
    let outcome = refused_and_closed("421 4.3.0 shutting down\r\n").await;
    assert_refused(&outcome, Class::Transient, Stage::MailFrom);
    let outcome = refused_and_closed("250 Ok\r\n250 Ok\r\n421 4.7.0 too fast\r\n").await;
    assert_refused(&outcome, Class::Throttled, Stage::RcptTo);
    let outcome = refused_and_closed("250 Ok\r\n250 Ok\r\n250 Ok\r\n421 4.3.2 later\r\n").await;
    assert_refused(&outcome, Class::Throttled, Stage::Data);
}

#[tokio::test]
async fn a_refusal_that_was_read_counts_even_if_the_rest_of_the_flight_is_lost() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say(if conn.number == 0 { "550 5.7.1 sender blocked\r\n" } else { "250 Ok\r\n550 5.1.1 no\r\n" }).await;
    })
    .await;
    let relay = relay(server.port);
    assert_refused(&deliver(&relay).await, Class::Sender, Stage::MailFrom);
    let outcome = deliver(&relay).await;
    let Outcome::Refused { refusal, recipients } = outcome else { panic!("{outcome:?}") };
    assert_eq!((refusal.class, recipients.len()), (Class::Recipient, 1));
    server.finish().await;
}

#[tokio::test]
async fn a_reply_in_the_wrong_place_before_the_message_is_certain() {
    for answers in [
        "250 Ok\r\n250 Ok\r\n250 Ok\r\n250 not 354\r\n",
        "354 Go on\r\n",
        "250 Ok\r\n354 Go on\r\n",
        "250-Ok\r\n550 mixed\r\n",
        "what?\r\n",
    ] {
        let Outcome::Refused { refusal, .. } = refused_and_closed(answers).await else { panic!("{answers}") };
        assert_eq!(refusal.class, Class::Transient, "{answers}");
    }
}

#[tokio::test]
async fn one_reply_too_many_before_the_message_stops_it() {
    // Taken for the answer to the message, the second 250 would report a success that never was.
    let outcome = refused_and_closed("250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n250 2.0.0 queued\r\n").await;
    assert_refused(&outcome, Class::Transient, Stage::Data);
}

#[tokio::test]
async fn one_reply_too_many_after_the_message_ends_the_connection() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say(GO_ON).await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n250 Ok\r\n").await;
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    server.finish().await;
    assert_eq!(relay.open_connections(), 0);
}

#[tokio::test]
async fn after_the_dot_only_a_real_answer_counts() {
    for (answer, is_unknown) in [
        ("what?\r\n", true),
        ("354 Go on\r\n", true),
        ("421 4.3.0 closing\r\n", false),
        ("552 5.3.4 too big\r\n", false),
    ] {
        let server = Server::start(move |mut conn| async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            conn.expect(ON_THE_WIRE).await;
            conn.say(answer).await;
        })
        .await;
        let outcome = deliver(&relay(server.port)).await;
        if is_unknown {
            assert_unknown(&outcome);
        } else {
            assert!(matches!(outcome, Outcome::Refused { .. }), "{answer}: {outcome:?}");
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_greeting_that_turns_everybody_away_asks_for_the_right_host_and_for_a_person() {
    for greeting in ["521 5.3.2 This host takes no mail\r\n", "554 5.7.1 No mail from here\r\n"] {
        let server = Server::start(move |mut conn| async move { conn.say(greeting).await }).await;
        let outcome = deliver(&relay(server.port)).await;
        let answer = assert_refused(&outcome, Class::Config, Stage::Connect);
        assert!(answer.text.contains("is `host` a relay for this machine?"), "{answer}");
        server.finish().await;
    }
}
