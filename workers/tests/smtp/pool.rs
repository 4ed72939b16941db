//! Connections: how many, how long, and which of them serve again.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use postrider_workers::{
    policy::outcome::{Class, Stage},
    transport::smtp::{Relay, RelaySettings},
};
use tokio::sync::Notify;

use crate::{
    FLIGHT, GO_ON, ON_THE_WIRE, PIPELINING, assert_accepted, assert_refused, deliver, eventually, relay,
    server::{Server, obliging},
    settings,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_connections_than_allowed() {
    let open = Arc::new(AtomicUsize::new(0));
    let peak = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let (open, peak) = (Arc::clone(&open), Arc::clone(&peak));
        move |conn| {
            let (open, peak) = (Arc::clone(&open), Arc::clone(&peak));
            async move {
                peak.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                obliging(conn, |_| ()).await;
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let relay = Arc::new(relay(server.port));
    let sends: Vec<_> = (0..64)
        .map(|_| {
            let relay = Arc::clone(&relay);
            tokio::spawn(async move {
                let outcome = deliver(&relay).await;
                assert!(relay.open_connections() <= 4);
                outcome
            })
        })
        .collect();
    for send in sends {
        assert_accepted(&send.await.unwrap());
    }
    assert!(peak.load(Ordering::SeqCst) <= 4 && server.accepted() <= 4, "{} connections", server.accepted());
    assert_eq!(relay.open_connections(), server.accepted());
    relay.close().await;
    assert_eq!(relay.open_connections(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_connection_carries_so_many_messages_and_then_says_goodbye() {
    let quits = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let quits = Arc::clone(&quits);
        move |conn| {
            let quits = Arc::clone(&quits);
            async move {
                let mails = AtomicUsize::new(0);
                obliging(conn, |line| {
                    mails.fetch_add(usize::from(line.starts_with("MAIL")), Ordering::SeqCst);
                    quits.fetch_add(usize::from(line == "QUIT"), Ordering::SeqCst);
                })
                .await;
                assert!(mails.load(Ordering::SeqCst) <= 3);
            }
        }
    })
    .await;
    let relay = Relay::new(RelaySettings { messages_per_connection: 3, ..settings(server.port) }).unwrap();
    for _ in 0..7 {
        assert_accepted(&deliver(&relay).await);
    }
    assert_eq!(server.accepted(), 3);
    relay.close().await;
    eventually("all three said goodbye", || quits.load(Ordering::SeqCst) == 3).await;
    server.finish().await;
}

#[tokio::test]
async fn the_connection_used_last_is_used_first_and_idle_ones_go() {
    let server = Server::start(|conn| obliging(conn, |_| ())).await;
    let relay = Relay::new(RelaySettings { idle: Duration::from_millis(100), ..settings(server.port) }).unwrap();
    let (a, b, c) = tokio::join!(deliver(&relay), deliver(&relay), deliver(&relay));
    for outcome in [a, b, c] {
        assert_accepted(&outcome);
    }
    assert_eq!(relay.open_connections(), 3);
    // One message at a time keeps one connection; nobody but the clock closes the others.
    let deadline = Instant::now() + Duration::from_secs(10);
    while relay.open_connections() > 1 {
        assert!(Instant::now() < deadline, "idle connections stay");
        assert_accepted(&deliver(&relay).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually("none is left", || relay.open_connections() == 0).await;
    assert_eq!(server.accepted(), 3);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_connection_that_the_relay_closed_while_idle_is_replaced_unnoticed() {
    let hang_up = Arc::new(Notify::new());
    let server = Server::start({
        let hang_up = Arc::clone(&hang_up);
        move |mut conn| {
            let hang_up = Arc::clone(&hang_up);
            async move {
                conn.welcome(PIPELINING).await;
                conn.take().await;
                if conn.number == 0 {
                    hang_up.notified().await;
                    conn.say("421 4.4.2 idle for too long\r\n").await;
                } else {
                    conn.rest().await;
                }
            }
        }
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    hang_up.notify_one();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 2);
    drop(relay);
    server.finish().await;
}

/// The relay gives an idle connection up in the very moment when it is used again: it sees the envelope and answers `farewell`.
async fn crossing(farewell: &'static str) -> (Arc<Mutex<Vec<String>>>, Server, Relay) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = Server::start({
        let seen = Arc::clone(&seen);
        move |mut conn| {
            let seen = Arc::clone(&seen);
            async move {
                conn.welcome(PIPELINING).await;
                conn.take().await;
                if conn.number == 0 {
                    conn.expect(FLIGHT).await;
                    seen.lock().unwrap().push("envelope".to_owned());
                    conn.say(farewell).await;
                } else {
                    conn.rest().await;
                }
            }
        }
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    (seen, server, relay)
}

#[tokio::test]
async fn a_connection_that_dies_under_the_first_command_is_replaced_once() {
    for farewell in ["", "421 4.4.2 timeout exceeded\r\n", "421 bye\r\n"] {
        let (seen, server, relay) = crossing(farewell).await;
        assert_accepted(&deliver(&relay).await);
        assert_eq!((server.accepted(), seen.lock().unwrap().len()), (2, 1), "{farewell}");
        drop(relay);
        server.finish().await;
    }
}

#[tokio::test]
async fn a_connection_that_was_answered_or_told_to_slow_down_is_not_replaced() {
    for (farewell, class) in
        [("421 4.7.0 too fast\r\n", Class::Throttled), ("25", Class::Transient), ("?\r\n", Class::Transient)]
    {
        let (_, server, relay) = crossing(farewell).await;
        assert_refused(&deliver(&relay).await, class, Stage::MailFrom);
        assert_eq!(server.accepted(), 1, "{farewell}");
        server.finish().await;
    }
}

#[tokio::test]
async fn a_cancelled_delivery_leaves_no_reply_for_the_next_one() {
    let is_sent = Arc::new(AtomicBool::new(false));
    let server = Server::start({
        let is_sent = Arc::clone(&is_sent);
        move |mut conn| {
            let is_sent = Arc::clone(&is_sent);
            async move {
                conn.welcome(PIPELINING).await;
                conn.expect(FLIGHT).await;
                if conn.number == 0 {
                    // The answers come when nobody waits for them any more.
                    is_sent.store(true, Ordering::SeqCst);
                    assert_eq!(conn.rest().await, "");
                    return;
                }
                conn.say(GO_ON).await;
                conn.expect(ON_THE_WIRE).await;
                conn.say("554 5.7.1 refused\r\n").await;
                conn.expect("RSET\r\n").await;
                conn.say("250 Ok\r\n").await;
                conn.rest().await;
            }
        }
    })
    .await;
    let relay = Relay::new(RelaySettings { connections: 1, ..settings(server.port) }).unwrap();
    tokio::select! {
        outcome = deliver(&relay) => panic!("{outcome:?}"),
        () = eventually("the envelope is out", || is_sent.load(Ordering::SeqCst)) => {}
    }
    assert_eq!(relay.open_connections(), 0);
    assert_refused(&deliver(&relay).await, Class::Message, Stage::Body);
    assert_eq!(server.accepted(), 2);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_delivery_cancelled_after_the_dot_leaves_no_reply_either() {
    let is_sent = Arc::new(AtomicBool::new(false));
    let server = Server::start({
        let is_sent = Arc::clone(&is_sent);
        move |mut conn| {
            let is_sent = Arc::clone(&is_sent);
            async move {
                conn.welcome(PIPELINING).await;
                if conn.number == 1 {
                    conn.take().await;
                    conn.rest().await;
                    return;
                }
                conn.expect(FLIGHT).await;
                conn.say(GO_ON).await;
                conn.expect(ON_THE_WIRE).await;
                is_sent.store(true, Ordering::SeqCst);
                assert_eq!(conn.rest().await, "");
            }
        }
    })
    .await;
    let relay = relay(server.port);
    tokio::select! {
        outcome = deliver(&relay) => panic!("{outcome:?}"),
        () = eventually("the message is out", || is_sent.load(Ordering::SeqCst)) => {}
    }
    assert_accepted(&deliver(&relay).await);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn who_waits_in_line_too_long_is_told_to_slow_down() {
    let server = Server::start(|mut conn| async move {
        conn.rest().await;
    })
    .await;
    let relay =
        Relay::new(RelaySettings { connections: 1, line: Duration::from_millis(50), ..settings(server.port) }).unwrap();
    tokio::select! {
        outcome = deliver(&relay) => panic!("{outcome:?}"),
        () = async {
            eventually("the connection is taken", || relay.open_connections() == 1).await;
            assert_refused(&deliver(&relay).await, Class::Throttled, Stage::Connect);
        } => {}
    }
    server.finish().await;
}

#[tokio::test]
async fn a_closed_relay_says_goodbye_and_takes_nothing_more() {
    let commands = Arc::new(Mutex::new(HashSet::new()));
    let server = Server::start({
        let commands = Arc::clone(&commands);
        move |conn| {
            let commands = Arc::clone(&commands);
            async move {
                obliging(conn, |line| {
                    commands.lock().unwrap().insert(line.to_owned());
                })
                .await;
            }
        }
    })
    .await;
    let relay = relay(server.port);
    assert_accepted(&deliver(&relay).await);
    relay.close().await;
    assert!(commands.lock().unwrap().contains("QUIT"));
    assert_eq!(relay.open_connections(), 0);
    assert_refused(&deliver(&relay).await, Class::Transient, Stage::Connect);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_connections_follows_a_new_limit_at_once_or_with_the_next_end() {
    let open = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let open = Arc::clone(&open);
        move |conn| {
            let open = Arc::clone(&open);
            async move {
                open.fetch_add(1, Ordering::SeqCst);
                obliging(conn, |_| ()).await;
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let relay = Arc::new(relay(server.port));
    let send = |count: usize| {
        let relay = Arc::clone(&relay);
        async move {
            let sends = (0..count).map(|_| deliver(&relay));
            for outcome in futures_util::future::join_all(sends).await {
                assert_accepted(&outcome);
            }
        }
    };
    send(8).await;
    assert_eq!(relay.open_connections(), 4);
    relay.resize(1);
    eventually("the surplus is closed", || relay.open_connections() == 1).await;
    send(8).await;
    assert_eq!((relay.open_connections(), relay.demand()), (1, (8, 1)));
    relay.resize(3);
    send(8).await;
    assert!(relay.open_connections() <= 3);
    relay.close().await;
    server.finish().await;
}
