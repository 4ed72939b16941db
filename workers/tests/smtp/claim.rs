//! The permission to submit: asked beside the envelope, obeyed before the message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider_workers::{
    policy::outcome::{Class, Outcome, Stage},
    transport::smtp::{Mail, Relay, RelaySettings, Settings, StageLimits},
};
use tokio::sync::oneshot;

use crate::{
    FLIGHT, GO_ON, MESSAGE, ON_THE_WIRE, PIPELINING, address, assert_accepted, assert_refused, eventually, of_session,
    relay,
    server::{Server, obliging},
    session, settings,
};

async fn deliver(relay: &Relay, may_submit: impl Future<Output = bool>) -> Outcome {
    let from = address("from@shop.example");
    let recipient = address("ann@dest.example");
    relay.deliver(Mail { from: Some(&from), recipients: &[&recipient], message: MESSAGE }, may_submit).await
}

#[tokio::test]
async fn the_message_waits_for_the_permission_while_the_envelope_does_not() {
    let (grant, granted) = oneshot::channel();
    let grant = std::sync::Mutex::new(Some(grant));
    let server = Server::start(move |mut conn| {
        let grant = grant.lock().unwrap().take().unwrap();
        async move {
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            // Whatever came before this would fail the next line.
            tokio::time::sleep(Duration::from_millis(50)).await;
            grant.send(()).unwrap();
            conn.expect(ON_THE_WIRE).await;
            conn.say("250 Ok\r\n").await;
            conn.rest().await;
        }
    })
    .await;
    let relay = relay(server.port);
    let is_granted = AtomicBool::new(false);
    let outcome = deliver(&relay, async {
        granted.await.unwrap();
        is_granted.store(true, Ordering::SeqCst);
        true
    })
    .await;
    assert!(is_granted.load(Ordering::SeqCst));
    assert_accepted(&outcome);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn without_the_permission_not_a_byte_of_the_message_is_sent() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        if conn.number == 0 {
            conn.say(GO_ON).await;
        }
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let relay = relay(server.port);
    let late = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        false
    };
    assert_eq!(deliver(&relay, late).await, Outcome::LostClaim);
    assert_eq!(deliver(&relay, async { false }).await, Outcome::LostClaim);
    server.finish().await;
    assert_eq!(relay.open_connections(), 0);
}

#[tokio::test]
async fn a_permission_that_never_comes_is_given_up() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        conn.expect(FLIGHT).await;
        conn.say(GO_ON).await;
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let limits = StageLimits { data: Duration::from_millis(50), ..StageLimits::default() };
    let relay = Relay::new(of_session(Settings { limits, ..session(server.port) })).unwrap();
    let outcome = deliver(&relay, std::future::pending()).await;
    assert_refused(&outcome, Class::Transient, Stage::Data);
    server.finish().await;
}

#[tokio::test]
async fn a_permission_once_asked_for_is_waited_for_even_when_the_relay_refuses() {
    let server = Server::start(|mut conn| async move {
        conn.welcome(PIPELINING).await;
        for _ in 0..2 {
            conn.expect(FLIGHT).await;
            conn.say("550 5.7.1 no\r\n503 no\r\n503 no\r\n").await;
            conn.expect("RSET\r\n").await;
            conn.say("250 Ok\r\n").await;
        }
        conn.rest().await;
    })
    .await;
    let relay = relay(server.port);
    for answer in [true, false] {
        let is_over = AtomicBool::new(false);
        let outcome = deliver(&relay, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            is_over.store(true, Ordering::SeqCst);
            answer
        })
        .await;
        assert!(is_over.load(Ordering::SeqCst));
        if answer {
            assert_refused(&outcome, Class::Sender, Stage::MailFrom);
        } else {
            assert_eq!(outcome, Outcome::LostClaim);
        }
    }
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn waiting_in_line_is_not_submitting() {
    let server = Server::start(|conn| obliging(conn, |_| ())).await;
    let relay = Arc::new(Relay::new(RelaySettings { connections: 1, ..settings(server.port) }).unwrap());
    let (grant, granted) = oneshot::channel::<()>();
    let first_asked = Arc::new(AtomicBool::new(false));
    let first = tokio::spawn({
        let (relay, asked) = (Arc::clone(&relay), Arc::clone(&first_asked));
        async move {
            deliver(&relay, async {
                asked.store(true, Ordering::SeqCst);
                granted.await.is_ok()
            })
            .await
        }
    });
    eventually("the first delivery asks", || first_asked.load(Ordering::SeqCst)).await;
    let second_asked = Arc::new(AtomicBool::new(false));
    let second = tokio::spawn({
        let (relay, asked) = (Arc::clone(&relay), Arc::clone(&second_asked));
        async move {
            deliver(&relay, async {
                asked.store(true, Ordering::SeqCst);
                true
            })
            .await
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!second_asked.load(Ordering::SeqCst));
    grant.send(()).unwrap();
    assert_accepted(&first.await.unwrap());
    assert_accepted(&second.await.unwrap());
    assert!(second_asked.load(Ordering::SeqCst));
    drop(relay);
    server.finish().await;
}
