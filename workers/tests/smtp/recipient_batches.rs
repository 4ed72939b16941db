//! Recipients that one transaction cannot serve, and relays that cannot do what they offer.

use postrider_workers::{
    policy::outcome::{Class, Mark, Outcome, RecipientRefusal},
    transport::smtp::{Relay, Settings},
};

use crate::{
    FLIGHT, MESSAGE, ON_THE_WIRE, PIPELINING, assert_accepted, deliver, deliver_to, of_session, relay, server::Server,
    session,
};

const MAIL: &str = "MAIL FROM:<from@shop.example>\r\n";

fn rcpt(users: &[&str]) -> String {
    users.iter().map(|user| format!("RCPT TO:<{user}@dest.example>\r\n")).collect::<Vec<_>>().concat()
}

fn flight(users: &[&str]) -> String {
    format!("{MAIL}{}DATA\r\n", rcpt(users))
}

fn shown(refused: &[RecipientRefusal]) -> Vec<(usize, Class, Mark)> {
    refused.iter().map(|one| (one.index, one.refusal.class, one.refusal.answer.mark)).collect()
}

#[tokio::test]
async fn too_many_recipients_leave_the_others_for_the_next_transaction_and_the_limit_is_remembered() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(&flight(&["ann", "bob", "cid"])).await;
        conn.say("250 Ok\r\n250 Ok\r\n250 Ok\r\n452 4.5.3 Too many recipients\r\n354 Go on\r\n").await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n").await;
        // Nobody is asked whom it will not take.
        conn.expect(&flight(&["dan", "eve"])).await;
        conn.say("250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
        conn.expect(ON_THE_WIRE).await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob", "cid"], MESSAGE).await;
    assert_eq!(shown(assert_accepted(&outcome)), [(2, Class::Transient, Mark::NotAsked)]);
    let outcome = deliver_to(&relay, &["dan", "eve", "fay"], MESSAGE).await;
    assert_eq!(shown(assert_accepted(&outcome)), [(2, Class::Transient, Mark::NotAsked)]);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn what_a_relay_said_before_it_hung_up_counts_and_the_rest_goes_on_at_once() {
    for farewell in ["421 4.7.0 Error: too many errors\r\n", ""] {
        let server = Server::start(move |mut conn| async move {
            conn.welcome(PIPELINING).await;
            if conn.number == 0 {
                conn.expect(&flight(&["ann", "bob", "cid"])).await;
                conn.say("250 Ok\r\n250 Ok\r\n550 5.1.1 No such user\r\n").await;
                conn.say(farewell).await;
                return;
            }
            conn.expect(&flight(&["ann", "cid"])).await;
            conn.say("250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n").await;
            conn.expect(ON_THE_WIRE).await;
            conn.say("250 Ok\r\n").await;
            conn.rest().await;
        })
        .await;
        let relay = relay(server.port);
        let outcome = deliver_to(&relay, &["ann", "bob", "cid"], MESSAGE).await;
        assert_eq!(shown(assert_accepted(&outcome)), [(1, Class::Recipient, Mark::Plain)], "{farewell}");
        assert_eq!(server.accepted(), 2);
        drop(relay);
        server.finish().await;
    }
}

#[tokio::test]
async fn a_relay_that_hangs_up_at_one_recipient_without_a_word_gets_the_others() {
    let server = Server::start(|mut conn| async move {
        conn.welcome("250 relay.example\r\n").await;
        conn.expect(MAIL).await;
        conn.say("250 Ok\r\n").await;
        loop {
            let line = conn.line().await;
            match line.get(..4).unwrap_or_default() {
                "RCPT" if line.contains("<ann@") => return,
                "RCPT" => conn.say("250 Ok\r\n").await,
                "DATA" => {
                    conn.say("354 Go on\r\n").await;
                    conn.expect(ON_THE_WIRE).await;
                    conn.say("250 Ok\r\n").await;
                    conn.rest().await;
                    return;
                }
                other => panic!("{other}"),
            }
        }
    })
    .await;
    let relay = relay(server.port);
    let outcome = deliver_to(&relay, &["ann", "bob"], MESSAGE).await;
    assert_eq!(shown(assert_accepted(&outcome)), [(0, Class::Transient, Mark::Plain)]);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn where_pipelining_loses_commands_the_envelope_goes_in_steps_and_that_is_remembered() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        if conn.number == 0 {
            conn.expect(FLIGHT).await;
            conn.say("503 5.5.1 MAIL first\r\n").await;
            return;
        }
        for _ in 0..2 {
            conn.expect(MAIL).await;
            conn.say("250 Ok\r\n").await;
            conn.expect(&rcpt(&["ann"])).await;
            conn.say("250 Ok\r\n").await;
            conn.expect("DATA\r\n").await;
            conn.say("354 Go on\r\n").await;
            conn.expect(ON_THE_WIRE).await;
            conn.say("250 Ok\r\n").await;
        }
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 2);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn pipelining_can_be_switched_off() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(MAIL).await;
        conn.say("550 5.1.0 no\r\n").await;
        conn.expect("RSET\r\n").await;
        conn.say("250 Ok\r\n").await;
        conn.rest().await;
    })
    .await;
    let relay = Relay::new(of_session(Settings { pipelining: false, ..session(server.port) })).unwrap();
    let outcome = deliver(&relay).await;
    assert!(matches!(&outcome, Outcome::Refused { refusal, .. } if refusal.class == Class::Sender), "{outcome:?}");
    drop(relay);
    server.finish().await;
}
