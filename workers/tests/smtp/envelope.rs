//! What is written, byte by byte, with and without each extension.

use postrider_workers::{
    policy::outcome::{Class, Stage},
    transport::smtp::Mail,
};

use crate::{
    FLIGHT, MESSAGE, ON_THE_WIRE, PIPELINING, address, assert_accepted, assert_refused, deliver, deliver_to, relay,
    server::Server,
};

#[tokio::test]
async fn with_pipelining_envelope_and_message_are_a_write_each() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(
            "MAIL FROM:<from@shop.example>\r\nRCPT TO:<ann@dest.example>\r\nRCPT TO:<bob@dest.example>\r\nDATA\r\n",
        )
        .await;
        conn.say("250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 2.0.0 Ok: queued as 4Xk\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob"], MESSAGE).await;
    assert!(assert_accepted(&outcome).is_empty());
    assert!(format!("{outcome:?}").contains("Ok: queued as 4Xk"), "{outcome:?}");
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn without_pipelining_every_command_waits_for_its_answer() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250 relay.example\r\n").await;
        for (command, answer) in [
            ("MAIL FROM:<from@shop.example>\r\n", "250 Ok\r\n"),
            ("RCPT TO:<ann@dest.example>\r\n", "250 Ok\r\n"),
            ("RCPT TO:<bob@dest.example>\r\n", "251 Will forward\r\n"),
            ("DATA\r\n", "354 Go on\r\n"),
            (ON_THE_WIRE, "250 Ok\r\n"),
        ] {
            conn.expect(command).await;
            conn.say(answer).await;
        }
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    assert!(assert_accepted(&deliver_to(&relay, &["ann", "bob"], MESSAGE).await).is_empty());
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn answers_may_come_in_any_pieces() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        for byte in "250-first\r\n250 2.1.0 Ok\r\n250 Ok\r\n354 Go on\r\n".bytes() {
            conn.say_bytes(&[byte]).await;
            tokio::task::yield_now().await;
        }
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_relay_that_knows_no_ehlo_is_greeted_the_old_way() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("502 5.5.1 What?\r\n").await;
        conn.expect("HELO worker.example\r\n").await;
        conn.say("250 relay.example\r\n").await;
        conn.expect("MAIL FROM:<from@shop.example>\r\n").await;
        conn.say("421 closing\r\n").await;
        assert_eq!(conn.rest().await, "");
    })
    .await;
    assert_refused(&deliver(&relay(server.port)).await, Class::Transient, Stage::MailFrom);
    server.finish().await;
}

#[tokio::test]
async fn dots_are_doubled_and_lone_line_ends_completed() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250-relay.example\r\n250-SIZE 1000\r\n250 PIPELINING\r\n").await;
        conn.expect("MAIL FROM:<from@shop.example> SIZE=16\r\nRCPT TO:<ann@dest.example>\r\nDATA\r\n").await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect("a\r\n\r\n..\r\n..b\r\ncd\r\n.\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver_to(&relay, &["ann"], b"a\n\n.\r\n.b\rcd").await);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn parameters_are_sent_where_they_are_offered_and_needed() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250-relay.example\r\n250-SIZE\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 PIPELINING\r\n").await;
        conn.expect("MAIL FROM:<> SIZE=4 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<zoë@xn--bcher-kva.example>\r\nDATA\r\n")
            .await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect("ü\r\n.\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.expect("MAIL FROM:<> SIZE=12 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<zoe@xn--bcher-kva.example>\r\nDATA\r\n")
            .await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect("Cc: ü@a\r\n\r\n.\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.expect("MAIL FROM:<> SIZE=12 BODY=8BITMIME\r\nRCPT TO:<zoe@xn--bcher-kva.example>\r\nDATA\r\n").await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect("a: b\r\n\r\nü\r\n.\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.expect("MAIL FROM:<> SIZE=3\r\nRCPT TO:<zoe@xn--bcher-kva.example>\r\nDATA\r\n").await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect("u\r\n.\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let international = "Cc: ü@a\r\n\r\n";
    for (recipient, message) in [
        ("zoë@bücher.example", "ü\r\n"),
        ("zoe@bücher.example", international),
        ("zoe@bücher.example", "a: b\r\n\r\nü\r\n"),
        ("zoe@bücher.example", "u\r\n"),
    ] {
        let recipient = address(recipient);
        let mail = Mail { from: None, recipients: &[&recipient], message: message.as_bytes() };
        assert_accepted(&relay.deliver(mail, std::future::ready(true)).await);
    }
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn what_the_relay_cannot_take_is_refused_without_asking_it() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250-relay.example\r\n250-SIZE 30\r\n250 PIPELINING\r\n").await;
        conn.expect("MAIL FROM:<from@shop.example> SIZE=25\r\nRCPT TO:<ann@dest.example>\r\nDATA\r\n").await;
        conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let text = |outcome, stage| assert_refused(&outcome, Class::Unsupported, stage).text.clone();
    let big = deliver_to(&relay, &["ann"], &[b'x'; 29]).await;
    assert_eq!(text(big, Stage::MailFrom), "the message has 31 bytes, the relay takes 30");
    assert!(text(deliver_to(&relay, &["ann"], "ü\r\n".as_bytes()).await, Stage::MailFrom).contains("8BITMIME"));
    assert!(text(deliver_to(&relay, &["zoë"], MESSAGE).await, Stage::MailFrom).contains("SMTPUTF8"));
    // Somebody else's address in the header.
    let header = "To: zoë@dest.example\r\n\r\n".as_bytes();
    assert!(text(deliver_to(&relay, &["ann"], header).await, Stage::MailFrom).contains("8BITMIME"));
    let nobody = deliver_to(&relay, &[], MESSAGE).await;
    assert!(assert_refused(&nobody, Class::Message, Stage::RcptTo).text.contains("no recipient"));
    // All that on the connection which still serves.
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 1);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_message_larger_than_every_buffer_on_the_way_arrives_whole() {
    let line = "x".repeat(76) + "\r\n";
    let message = line.repeat(100_000);
    let expected = message.clone() + ".\r\n";
    let server = Server::start(move |mut conn| {
        let expected = expected.clone();
        async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say("250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
            conn.expect(&expected).await;
            conn.say("250 Ok\r\n").await;
            conn.rest().await;
        }
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver_to(&relay, &["ann"], message.as_bytes()).await);
    drop(relay);
    server.finish().await;
}
