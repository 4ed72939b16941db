//! Calls that several jobs share.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use postrider_schemas::Job;
use postrider_workers::{
    policy::outcome::{Class, Outcome},
    transport::Transport,
};
use serde_json::{Value, json};

use crate::{
    accepted, assert_unknown, config, deliver, job, letter, refused,
    server::{Act, Seen, Server, answer, ok},
    transport, transport_of,
};

/// Bulk jobs with the same content for n different recipients, their numbers in the addresses and ids.
pub(crate) fn jobs(count: usize) -> Vec<Job> {
    let one = |n: usize| {
        job(json!({
            "id": format!("0190a5c0-7a10-7c3e-9d51-{n:012}"),
            "lane": "bulk",
            "to": [format!("r{n}@dest.example")],
            "metadata": { "n": n.to_string() },
        }))
    };
    (0..count).map(one).collect()
}

pub(crate) async fn deliver_all(transport: &Transport, jobs: &[Job]) -> Vec<Outcome> {
    join_all(jobs.iter().map(|job| deliver(transport, job))).await
}

/// The addresses that a call of Postmark or Resend is for.
fn addresses(seen: &Seen) -> Vec<String> {
    let to = |message: &Value| match &message["To"] {
        Value::String(one) => one.clone(),
        _ => message["to"][0].as_str().unwrap().to_owned(),
    };
    seen.body.as_array().unwrap().iter().map(to).collect()
}

/// Postmark's answer for each message of a call.
fn postmark(seen: &Seen, one: impl Fn(&str) -> Value) -> Act {
    ok(addresses(seen).iter().map(|address| one(address)).collect::<Value>())
}

fn good(address: &str) -> Value {
    json!({ "MessageID": format!("id-of-{}", address.replace('@', "-at-")), "ErrorCode": 0, "Message": "OK" })
}

/// Resend's answer to a call that it takes.
fn resend(seen: &Seen) -> Act {
    let list: Value = addresses(seen).iter().map(|one| json!({ "id": one.replace('@', "-at-") })).collect();
    ok(json!({ "data": list }))
}

#[tokio::test]
async fn bulk_jobs_share_a_call_and_each_has_its_own_answer() {
    let server = Server::start(|_, seen| {
        postmark(seen, |address| match address {
            "r3@dest.example" => json!({ "ErrorCode": 406, "Message": "inactive" }),
            "r4@dest.example" => json!({ "ErrorCode": 429, "Message": "slowly" }),
            other => good(other),
        })
    })
    .await;
    let outcomes = deliver_all(&transport("postmark", server.port), &jobs(20)).await;
    assert_eq!(server.seen().len(), 1);
    assert_eq!(server.seen()[0].target, "POST /email/batch");
    for (n, outcome) in outcomes.iter().enumerate() {
        match n {
            3 => assert_eq!(refused(outcome), Class::Recipient),
            4 => assert_eq!(refused(outcome), Class::Throttled),
            n => assert_eq!(accepted(outcome), format!("id-of-r{n}-at-dest.example")),
        }
    }
}

#[tokio::test]
async fn transactional_jobs_never_wait_for_company() {
    let server = Server::start(|_, _| ok(good("x"))).await;
    let transport = transport("postmark", server.port);
    let jobs: Vec<Job> = (0..5).map(|n| job(json!({ "id": format!("0190a5c0-7a10-7c3e-9d51-{n:012}") }))).collect();
    for outcome in deliver_all(&transport, &jobs).await {
        accepted(&outcome);
    }
    assert_eq!(server.seen().len(), 5);
    assert!(server.seen().iter().all(|seen| seen.target == "POST /email"));
}

#[tokio::test]
async fn a_full_call_does_not_wait() {
    let server = Server::start(|_, seen| {
        let list: Value =
            seen.body["Messages"].as_array().unwrap().iter().map(|_| json!({ "Status": "success" })).collect();
        ok(json!({ "Messages": list }))
    })
    .await;
    // Mailjet takes 50 messages in a call.
    let outcomes = deliver_all(&transport("mailjet", server.port), &jobs(120)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })));
    let mut sizes: Vec<usize> =
        server.seen().iter().map(|seen| seen.body["Messages"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [20, 50, 50]);
}

#[tokio::test]
async fn batching_can_be_switched_off() {
    let server = Server::start(|_, _| ok(good("x"))).await;
    let mut settings = config("postmark", &format!("http://127.0.0.1:{}", server.port));
    settings.batch = false;
    let transport = transport_of(settings);
    deliver_all(&transport, &jobs(3)).await;
    assert!(server.seen().iter().all(|seen| seen.target == "POST /email"));
    assert_eq!(server.seen().len(), 3);
}

/// The addresses of a call to `SendGrid`.
fn personalizations(seen: &Seen) -> Vec<String> {
    let list = seen.body["personalizations"].as_array().unwrap();
    list.iter().map(|one| one["to"][0]["email"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_call_refused_for_one_address_reaches_all_others_once() {
    let server = Server::start(|_, seen| {
        if personalizations(seen).iter().any(|one| one == "r37@dest.example") {
            answer(400, json!({ "errors": [{ "message": "Does not contain a valid address." }] }))
        } else {
            Act::Answer(202, vec![("X-Message-Id", "m1".to_owned())], String::new())
        }
    })
    .await;
    let outcomes = deliver_all(&transport("sendgrid", server.port), &jobs(100)).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        if n == 37 {
            assert_eq!(refused(outcome), Class::Recipient);
        } else {
            assert_eq!(accepted(outcome), "m1");
        }
    }
    let bad = "r37@dest.example".to_owned();
    let mut taken: Vec<String> =
        server.seen().iter().map(personalizations).filter(|call| !call.contains(&bad)).flatten().collect();
    assert_eq!(taken.len(), 99);
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 99);
    // Eight calls with the bad one in them, and the halves without it.
    assert!(server.seen().len() <= 16, "{}", server.seen().len());
}

#[tokio::test]
async fn only_the_same_content_shares_a_call_of_personalizations() {
    let server = Server::start(|_, _| answer(202, "")).await;
    let mut list = jobs(4);
    list.push(job(json!({ "id": "0190a5c0-7a10-7c3e-9d51-000000000098", "lane": "bulk", "text": "another" })));
    list.push(job(json!({
        "id": "0190a5c0-7a10-7c3e-9d51-000000000099", "lane": "bulk", "to": ["x@dest.example", "y@dest.example"],
    })));
    // The same address as the first one, in capitals.
    list.push(job(json!({
        "id": "0190a5c0-7a10-7c3e-9d51-000000000097", "lane": "bulk", "to": ["R0@dest.example"], "metadata": { "n": "0" },
    })));
    let outcomes = deliver_all(&transport("sendgrid", server.port), &list).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })));
    let mut sizes: Vec<usize> = server.seen().iter().map(|seen| personalizations(seen).len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 4]);
}

#[tokio::test]
async fn an_answer_about_the_account_is_everyones() {
    for (status, class) in [(429, Class::Throttled), (401, Class::Config), (503, Class::Transient)] {
        let server = Server::start(move |_, _| answer(status, "")).await;
        for outcome in deliver_all(&transport("postmark", server.port), &jobs(5)).await {
            assert_eq!(refused(&outcome), class);
        }
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_cut_call_is_unknown_for_all_and_is_not_repeated_without_a_key() {
    for kind in ["postmark", "sendgrid", "mailjet"] {
        let server = Server::start(|_, _| Act::Cut).await;
        let outcomes = deliver_all(&transport(kind, server.port), &jobs(5)).await;
        outcomes.iter().for_each(assert_unknown);
        assert_eq!(server.seen().len(), 1, "{kind}");
    }
}

#[tokio::test]
async fn a_cut_call_with_a_key_is_repeated_and_its_first_taking_counts() {
    let server = Server::start(|n, seen| if n < 2 { Act::Cut } else { resend(seen) }).await;
    let outcomes = deliver_all(&transport("resend", server.port), &jobs(5)).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(accepted(outcome), format!("r{n}-at-dest.example"));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|one| one.body == seen[0].body && one.target == "POST /emails/batch"));
    assert!(seen.iter().all(|one| one.headers["idempotency-key"] == seen[0].headers["idempotency-key"]));
}

#[tokio::test]
async fn a_call_with_a_key_that_never_ends_clearly_is_unknown_after_a_few_times() {
    let server = Server::start(|_, _| Act::Cut).await;
    deliver_all(&transport("resend", server.port), &jobs(3)).await.iter().for_each(assert_unknown);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn a_refusal_after_a_cut_proves_nothing() {
    for status in [422, 429, 401, 500] {
        let server = Server::start(move |n, _| if n == 0 { Act::Cut } else { answer(status, "{}") }).await;
        deliver_all(&transport("resend", server.port), &jobs(4)).await.iter().for_each(assert_unknown);
        assert!(server.seen().iter().all(|one| one.body == server.seen()[0].body), "{status}");
    }
}

#[tokio::test]
async fn an_earlier_call_that_is_under_way_is_waited_for() {
    let busy = json!({ "name": "concurrent_idempotent_requests", "message": "wait" });
    let server = Server::start(move |n, seen| match n {
        0 => Act::Cut,
        1 => answer(409, &busy),
        _ => resend(seen),
    })
    .await;
    for outcome in deliver_all(&transport("resend", server.port), &jobs(2)).await {
        accepted(&outcome);
    }
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn an_answer_for_fewer_messages_is_unknown_for_all() {
    let server = Server::start(|_, _| ok(json!([good("x")]))).await;
    deliver_all(&transport("postmark", server.port), &jobs(3)).await.iter().for_each(assert_unknown);
}

#[tokio::test]
async fn a_job_that_lost_its_claim_is_left_out() {
    let server = Server::start(|_, seen| postmark(seen, good)).await;
    let transport = transport("postmark", server.port);
    let jobs = jobs(4);
    let all_outgoing: Vec<_> = jobs.iter().map(letter).collect();
    let deliveries =
        all_outgoing.iter().enumerate().map(|(n, letter)| transport.deliver(letter, async move { n != 2 }));
    let outcomes = join_all(deliveries).await;
    assert_eq!(outcomes[2], Outcome::LostClaim);
    for n in [0, 1, 3] {
        accepted(&outcomes[n]);
    }
    assert_eq!(addresses(&server.seen()[0]), ["r0@dest.example", "r1@dest.example", "r3@dest.example"]);
}

#[tokio::test]
async fn permission_is_asked_of_all_at_once_and_before_the_call() {
    let server = Server::start(|_, seen| postmark(seen, good)).await;
    let transport = transport("postmark", server.port);
    let asked = Arc::new(AtomicUsize::new(0));
    let jobs = jobs(6);
    let all_outgoing: Vec<_> = jobs.iter().map(letter).collect();
    let deliveries = all_outgoing.iter().map(|letter| {
        let (asked, server) = (asked.clone(), &server);
        transport.deliver(letter, async move {
            asked.fetch_add(1, Ordering::SeqCst);
            // Nobody is permitted before everybody is asked.
            while asked.load(Ordering::SeqCst) < 6 {
                tokio::task::yield_now().await;
            }
            assert!(server.seen().is_empty());
            true
        })
    });
    for outcome in join_all(deliveries).await {
        accepted(&outcome);
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_job_that_goes_away_before_it_gave_permission_is_left_out() {
    let server = Server::start(|_, seen| postmark(seen, good)).await;
    let transport = transport("postmark", server.port);
    let jobs = jobs(3);
    let all_outgoing: Vec<_> = jobs.iter().map(letter).collect();
    let gone = async {
        // Dropped while its permission is being thought about.
        let asked = Arc::new(tokio::sync::Notify::new());
        let thinking = asked.clone();
        let delivery = transport.deliver(&all_outgoing[0], async move {
            thinking.notify_one();
            pending::<bool>().await
        });
        tokio::select! {
            outcome = delivery => panic!("{outcome:?}"),
            () = asked.notified() => {}
        }
    };
    let (one, two, ()) = tokio::join!(
        transport.deliver(&all_outgoing[1], async { true }),
        transport.deliver(&all_outgoing[2], async { true }),
        gone
    );
    accepted(&one);
    accepted(&two);
    assert_eq!(addresses(&server.seen()[0]).len(), 2);
}

#[tokio::test]
async fn a_job_that_goes_away_after_it_gave_permission_disturbs_nobody() {
    let server = Server::start(|_, seen| {
        std::thread::sleep(Duration::from_millis(50));
        postmark(seen, good)
    })
    .await;
    let transport = transport("postmark", server.port);
    let jobs = jobs(3);
    let all_outgoing: Vec<_> = jobs.iter().map(letter).collect();
    let gone = async {
        let delivery = transport.deliver(&all_outgoing[0], async { true });
        tokio::select! {
            _ = delivery => panic!("the answer came before the request"),
            () = async { while server.seen().is_empty() { tokio::task::yield_now().await; } } => {}
        }
    };
    let (one, two, ()) = tokio::join!(
        transport.deliver(&all_outgoing[1], async { true }),
        transport.deliver(&all_outgoing[2], async { true }),
        gone
    );
    accepted(&one);
    accepted(&two);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(addresses(&server.seen()[0]).len(), 3);
}

#[tokio::test]
async fn attachments_go_alone_at_a_provider_that_takes_none_in_a_shared_call() {
    let server =
        Server::start(|_, seen| if seen.body.is_array() { resend(seen) } else { ok(json!({ "id": "alone" })) }).await;
    let transport = transport("resend", server.port);
    let mut list = jobs(2);
    let file = json!([{ "filename": "a.txt", "content_type": "text/plain", "content": "YQ==" }]);
    list.push(job(json!({ "id": "0190a5c0-7a10-7c3e-9d51-000000000099", "lane": "bulk", "attachments": file })));
    let outcomes = deliver_all(&transport, &list).await;
    assert_eq!(accepted(&outcomes[2]), "alone");
    assert_eq!(server.seen().len(), 2);
    // The one alone can be repeated under the job's own key later on, the shared ones cannot.
    let windows: Vec<_> = list.iter().map(|job| transport.repeatable_for(&letter(job))).collect();
    assert_eq!(windows, [None, None, Some(Duration::from_hours(24))]);
}

#[tokio::test]
async fn a_window_for_repetition_is_there_where_a_key_is_honoured() {
    let (bulk, urgent) = (&jobs(1)[0], &job(json!({})));
    let window = |kind, job| transport(kind, 9).repeatable_for(&letter(job));
    assert_eq!(window("resend", urgent), Some(Duration::from_hours(24)));
    assert_eq!(window("resend", bulk), None);
    assert_eq!(window("brevo", urgent), Some(Duration::from_mins(15)));
    assert_eq!(window("brevo", bulk), Some(Duration::from_mins(15)));
    for kind in ["sendgrid", "postmark", "mailjet"] {
        assert_eq!((window(kind, urgent), window(kind, bulk)), (None, None), "{kind}");
    }
}

#[tokio::test]
async fn a_job_that_gives_its_place_back_leaves_the_call_to_the_others() {
    let server = Server::start(|_, seen| postmark(seen, good)).await;
    let transport = transport("postmark", server.port);
    let jobs = jobs(3);
    let all_outgoing: Vec<_> = jobs.iter().map(letter).collect();
    let (given_back, one, two) = tokio::join!(
        async { transport.acquire(&all_outgoing[0], None).await.map(drop).is_ok() },
        transport.deliver(&all_outgoing[1], async { true }),
        transport.deliver(&all_outgoing[2], async { true }),
    );
    assert!(given_back);
    accepted(&one);
    accepted(&two);
    let called: Vec<_> = server.seen().iter().map(addresses).collect();
    assert_eq!(called, [["r1@dest.example", "r2@dest.example"]]);
}

#[tokio::test]
async fn a_place_in_a_shared_call_is_there_when_the_call_can_be_made() {
    let server = Server::start(|_, seen| postmark(seen, good)).await;
    let mut settings = config("postmark", &format!("http://127.0.0.1:{}", server.port));
    settings.http.connections = 1;
    let transport = transport_of(settings);
    let (urgent, jobs) = (job(json!({})), jobs(1));
    let (urgent, bulk) = (letter(&urgent), letter(&jobs[0]));
    let held = transport.acquire(&urgent, None).await.ok().unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(150), transport.acquire(&bulk, None)).await;
    assert!(waiting.is_err(), "long after the linger, the only call is somebody else's");
    drop(held);
    assert!(transport.acquire(&bulk, None).await.is_ok());
}
