//! How a single call can end, and what that means for the message.

use std::{process::Command, time::Duration};

use postrider_workers::policy::outcome::{Class, Outcome, Stage};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    accepted, assert_unknown, config, deliver, job, refused,
    server::{Act, Server, answer, ok},
    transport, transport_of,
};

fn taken() -> Act {
    ok(json!({ "MessageID": "b7", "ErrorCode": 0, "Message": "OK" }))
}

/// One delivery by Postmark to a server that does this.
async fn after(act: Act) -> (Outcome, Server) {
    let server = Server::start(move |_, _| act.clone()).await;
    let outcome = deliver(&transport("postmark", server.port), &job(json!({}))).await;
    (outcome, server)
}

#[track_caller]
fn retry_after(outcome: &Outcome) -> Option<Duration> {
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    refusal.retry_after
}

#[tokio::test]
async fn a_wish_for_patience_in_seconds_is_heard() {
    let (outcome, _server) = after(Act::Answer(429, vec![("Retry-After", "7".to_owned())], String::new())).await;
    assert_eq!(refused(&outcome), Class::Throttled);
    assert_eq!(retry_after(&outcome), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_wish_for_patience_as_a_date_is_heard() {
    let at = jiff::Timestamp::now() + Duration::from_secs(7200);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap();
    let (outcome, _server) = after(Act::Answer(429, vec![("Retry-After", date)], String::new())).await;
    assert_eq!(refused(&outcome), Class::Throttled);
    let wait = retry_after(&outcome).unwrap();
    assert!(wait > Duration::from_secs(3600) && wait <= Duration::from_secs(7200), "{wait:?}");
}

#[tokio::test]
async fn a_busy_provider_is_tried_again() {
    let (outcome, server) = after(answer(503, "<html>busy</html>")).await;
    assert_eq!(refused(&outcome), Class::Transient);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn no_answer_within_the_limit_is_unknown() {
    let server = Server::start(|_, _| Act::Silence).await;
    let mut settings = config("postmark", &format!("http://127.0.0.1:{}", server.port));
    settings.http.timeout = Duration::from_millis(300);
    assert_unknown(&deliver(&transport_of(settings), &job(json!({}))).await);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_cut_after_the_request_is_unknown_and_is_not_repeated() {
    let (outcome, server) = after(Act::Cut).await;
    assert_unknown(&outcome);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_cut_within_an_answer_that_is_needed_is_unknown() {
    let Act::Answer(_, _, body) = taken() else { panic!("no answer") };
    assert_unknown(&after(Act::CutBody(200, body)).await.0);
}

#[tokio::test]
async fn a_cut_within_an_answer_whose_status_says_enough_is_no_doubt() {
    let (outcome, _server) = after(Act::CutBody(401, "x".repeat(1000))).await;
    assert_eq!(refused(&outcome), Class::Config);
}

#[tokio::test]
async fn nobody_at_the_address_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let outcome = deliver(&transport("postmark", port), &job(json!({}))).await;
    assert_eq!(refused(&outcome), Class::Unavailable);
    let Outcome::Refused { refusal, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.answer.stage, Stage::Connect);
}

#[tokio::test]
async fn a_name_that_is_not_found_is_tried_again() {
    // No label is longer than 63 octets: the resolver refuses it without asking anybody.
    let outcome =
        deliver(&transport_of(config("postmark", &format!("http://{}.invalid", "x".repeat(64)))), &job(json!({})))
            .await;
    assert_eq!(refused(&outcome), Class::Unavailable);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(|_, _| taken()).await;
    let to = format!("http://127.0.0.1:{}/email", other.port);
    for status in [301, 302, 307, 308] {
        let (outcome, _server) = after(Act::Answer(status, vec![("Location", to.clone())], String::new())).await;
        assert_eq!(refused(&outcome), Class::Config, "{status}");
    }
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut() {
    const BYTES: usize = 100 * 1024 * 1024;
    let (outcome, server) = after(Act::Endless(200, BYTES)).await;
    assert_unknown(&outcome);
    // What the buffers of the two sockets hold goes out before the server notices.
    assert!(server.bytes_out() < BYTES / 4, "{}", server.bytes_out());
    let (outcome, _server) = after(Act::Endless(401, BYTES)).await;
    assert_eq!(refused(&outcome), Class::Config);
}

#[tokio::test]
async fn html_instead_of_json_is_unknown() {
    assert_unknown(&after(answer(200, "<html>a login page</html>")).await.0);
    assert_unknown(&after(answer(200, "")).await.0);
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::start(|_, _| taken()).await;
    let transport = transport("postmark", server.port);
    for _ in 0..5 {
        assert_eq!(accepted(&deliver(&transport, &job(json!({}))).await), "b7");
    }
    assert_eq!((server.seen().len(), server.connections()), (5, 1));
}

#[tokio::test]
async fn a_connection_that_was_closed_between_calls_is_replaced_and_nothing_goes_out_twice() {
    let server = Server::start(|n, _| {
        let Act::Answer(status, _, body) = taken() else { panic!("no answer") };
        if n % 2 == 0 { Act::AnswerAndClose(status, body) } else { taken() }
    })
    .await;
    let transport = transport("postmark", server.port);
    let mut sent = 0;
    for _ in 0..40 {
        // The close may be seen before the request goes out, or be met by it: never may both be said to have happened.
        match deliver(&transport, &job(json!({}))).await {
            Outcome::Accepted { .. } => sent += 1,
            Outcome::Unknown(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.seen().len(), sent);
    assert!(sent > 0);
}

#[tokio::test]
async fn a_used_connection_that_is_cut_after_the_request_makes_no_second_one() {
    let server = Server::start(|n, _| if n % 2 == 0 { taken() } else { Act::Cut }).await;
    let transport = transport("postmark", server.port);
    for n in 0..20 {
        let outcome = deliver(&transport, &job(json!({}))).await;
        if n % 2 == 0 {
            accepted(&outcome);
        } else {
            assert_unknown(&outcome);
        }
        assert_eq!(server.seen().len(), n + 1);
    }
}

#[tokio::test]
async fn a_lost_claim_sends_nothing() {
    let server = Server::start(|_, _| taken()).await;
    let transport = transport("postmark", server.port);
    let job = job(json!({}));
    assert_eq!(transport.deliver(&crate::letter(&job), async { false }).await, Outcome::LostClaim);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn proxies_of_the_environment_are_not_used() {
    const MARK: &str = "TEST_WITH_PROXIES";
    if std::env::var_os(MARK).is_some() {
        let (outcome, server) = after(taken()).await;
        assert_eq!(accepted(&outcome), "b7");
        return assert_eq!(server.seen().len(), 1);
    }
    let proxy = Server::start(|_, _| answer(502, "")).await;
    let address = format!("http://127.0.0.1:{}", proxy.port);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "calls::proxies_of_the_environment_are_not_used"]).env(MARK, "1");
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, &address);
    }
    command.env_remove("no_proxy").env_remove("NO_PROXY");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert!(proxy.seen().is_empty());
}

#[tokio::test]
async fn a_proxy_of_the_configuration_is_used() {
    let proxy = Server::start(|_, _| taken()).await;
    let mut settings = config("postmark", "http://api.example");
    settings.http.proxy = Some(format!("http://127.0.0.1:{}", proxy.port).parse().unwrap());
    assert_eq!(accepted(&deliver(&transport_of(settings), &job(json!({}))).await), "b7");
    assert_eq!(proxy.seen()[0].target, "POST http://api.example/email");
}

#[tokio::test]
async fn transactional_mail_has_the_next_call_where_bulk_mail_waits_for_one() {
    let server = Server::start(|_, _| answer(201, json!({ "messageId": "<1@brevo.example>" }))).await;
    let transport = transport("brevo", server.port);
    let job = |n: usize, lane: &str| {
        let id = format!("0190a5c0-7a10-7c3e-9d51-{n:012}");
        job(json!({ "id": id, "lane": lane, "to": [format!("{lane}@dest.example")] }))
    };
    let mut jobs: Vec<_> = (0..40).map(|n| job(n, "bulk")).collect();
    jobs.push(job(40, "transactional"));
    for outcome in futures_util::future::join_all(jobs.iter().map(|job| deliver(&transport, job))).await {
        accepted(&outcome);
    }
    let is_urgent = |seen: &crate::server::Seen| seen.body["to"][0]["email"] == "transactional@dest.example";
    // Four calls were under way, and others may have ended with the first one.
    assert!(server.seen().iter().position(is_urgent).unwrap() < 8);
}

#[tokio::test]
async fn who_is_named_in_a_yes_or_a_no_is_rejected_alone() {
    let both = job(json!({ "to": ["Ann@dest.example", "bob@dest.example"] }));
    let rejected = |list: &[postrider_workers::policy::outcome::RecipientRefusal]| {
        list.iter().filter(|one| one.refusal.class == Class::Recipient).map(|one| one.index).collect::<Vec<_>>()
    };
    let text = "Message OK, but will not deliver to these inactive addresses: bob@dest.example.";
    let yes = json!({ "MessageID": "b7", "ErrorCode": 0, "Message": text });
    let server = Server::start(move |_, _| answer(200, yes.to_string())).await;
    let outcome = deliver(&transport("postmark", server.port), &both).await;
    let Outcome::Accepted { refused, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(rejected(refused), [1]);
    let no = json!({ "ErrorCode": 300, "Message": "Error parsing 'To': Illegal email address 'ann@dest.example'" });
    let server = Server::start(move |_, _| answer(422, no.to_string())).await;
    let outcome = deliver(&transport("postmark", server.port), &both).await;
    let Outcome::Refused { recipients, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!((rejected(recipients), recipients.len()), (vec![0], 2));
}
