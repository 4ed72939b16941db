//! What `explain --now` says of a wait is what an attempt is told, and the groups are those that the worker would find.

use postrider_schemas::{Job, Lane, wire};
use postrider_tests::{
    dnsmasq::Dnsmasq,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
};
use postrider_workers::{
    policy::rate_limit::admit::{Admission, AdmissionRequest},
    store::{Store, StoreOptions},
};
use serde_json::Value;

use crate::{limiter::demand, limits::throttle};

fn explain(config: &str, job: &Job, more: &[&str]) -> String {
    let arguments = ["explain", "-"].into_iter().chain(more.iter().copied());
    let done = Postrider::command(arguments).config(config).input(wire::encode(job).to_vec()).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    done.stdout
}

fn now(config: &str, job: &Job) -> Value {
    serde_json::from_str(&explain(config, job, &["--now", "--format", "json"])).unwrap()
}

fn job(lane: Lane, tenant: &str) -> Job {
    story::job_with(|job| {
        job.lane = lane;
        job.tenant = Some(tenant.to_owned());
        job.to = vec!["ada@slow.example".into()];
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_that_is_shown_is_the_one_that_an_attempt_of_that_lane_and_tenant_gets() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = story::config(&file, &file, 9, &format!("{}{ROUTE}", throttle("slow", "6/min")));
    let store = Store::connect(&file, StoreOptions::default()).await.unwrap();
    let scope = "group:relay:slow";
    // Slow enough that nothing gets free while commands start.
    let ask = |lane, tenant: &str| AdmissionRequest::fresh(vec![demand(scope, &["6/min"])], lane, tenant);
    for _ in 0..100 {
        store.admit(&ask(Lane::Bulk, "large")).await.unwrap();
    }
    let before = store.overview(None).await.unwrap().scopes;
    let mut shown = Vec::new();
    for (lane, tenant) in [(Lane::Bulk, "large"), (Lane::Bulk, "small"), (Lane::Transactional, "large")] {
        let told = now(&config, &job(lane, tenant));
        let limits = told["limits"].as_array().unwrap();
        let names: Vec<&str> = limits.iter().map(|one| one["scope"].as_str().unwrap()).collect();
        assert_eq!(names, ["transport:relay", scope, &format!("tenant:{tenant}")]);
        let wait = &told["waits"][0];
        assert_eq!((wait["part"].as_u64(), wait["transport"].as_str()), (Some(1), Some("relay")), "{told:#}");
        assert_eq!(limits[1]["now"]["wait_s"], wait["wait_s"], "nothing else is in the way: {told:#}");
        assert_eq!(limits[0]["now"]["wait_s"], 0.0, "{told:#}");
        shown.push((wait["answer"].as_str().unwrap().to_owned(), wait["wait_s"].as_f64().unwrap(), lane, tenant));
    }
    let text = explain(&config, &job(Lane::Bulk, "large"), &["--now"]);
    assert!(text.contains("by relay: waits for ") && text.contains("because of group:relay:slow"), "{text}");
    let text = explain(&config, &job(Lane::Transactional, "large"), &["--now"]);
    assert!(text.contains("by relay: goes at once"), "{text}");
    assert_eq!(store.overview(None).await.unwrap().scopes, before, "explaining charges nothing and joins no line");
    for (answer, wait_s, lane, tenant) in shown {
        let (word, wait_us) = match store.admit(&ask(lane, tenant)).await.unwrap() {
            Admission::Go { wait_us, .. } => ("go", wait_us),
            Admission::Park { slot_us, .. } => ("park", slot_us),
            other => panic!("{other:?}"),
        };
        println!("{lane:?} of {tenant}: {answer} in {wait_s:.2} s shown, {word} in {:.2} s got", wait_us / 1e6);
        // The slot stands still while the time passes.
        assert!(
            answer == word && (-0.1..10.0).contains(&(wait_s - wait_us / 1e6)),
            "{answer} {wait_s}, {word} {wait_us}"
        );
        match (lane, tenant) {
            (Lane::Bulk, "large") => assert!(wait_s > 250.0, "{wait_s}"),
            (Lane::Bulk, _) => assert!((0.1..30.0).contains(&wait_s), "{wait_s}"),
            _ => assert!(wait_s == 0.0, "{wait_s}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_what_a_route_does_at_a_limit_are_shown_as_they_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let rest = "[transport.spare]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                [[route]]\nname = \"slow\"\nwhen = { recipient_domains = [\"slow.example\"] }\nsend = [\"relay\", \"spare\"]\non_limit = \"next\"\n\
                [[route]]\nname = \"all\"\nsend = [\"spare\"]\non_limit = \"expire\"\n";
    let config = story::config(&file, &file, 9, &format!("{}{rest}", throttle("slow", "1/s")));
    let store = Store::connect(&file, StoreOptions::default()).await.unwrap();
    let full = |scope: &str, rate: &[&str]| AdmissionRequest::fresh(vec![demand(scope, rate)], Lane::Bulk, "default");
    for _ in 0..10 {
        store.admit(&full("group:relay:slow", &["1/s"])).await.unwrap();
    }
    let two = story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.to = vec!["ada@slow.example".into(), "bob@quick.example".into()];
    });
    let told = now(&config, &two);
    let scopes: Vec<&str> =
        told["limits"].as_array().unwrap().iter().map(|one| one["scope"].as_str().unwrap()).collect();
    let expected = [
        "transport:relay",
        "group:relay:slow",
        "tenant:default",
        "transport:spare",
        "group:spare:slow",
        "group:spare:quick.example",
    ];
    assert_eq!(scopes, expected, "no group of another part: {told:#}");
    let waits: Vec<(u64, &str, &str)> = told["waits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["part"].as_u64().unwrap(), one["transport"].as_str().unwrap(), one["answer"].as_str().unwrap()))
        .collect();
    assert_eq!(waits, [(1, "relay", "full"), (1, "spare", "go"), (2, "spare", "go")], "{told:#}");
    let text = explain(&config, &two, &["--now"]);
    assert!(
        text.contains("part 1 by relay: would have to wait") && text.contains("so the next one is tried"),
        "{text}"
    );
    assert!(text.contains("part 2 by spare: goes at once"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_by_mail_exchangers_are_shown_where_dns_tells_them() {
    let dns = Dnsmasq::start(&["--mx-host=one.example,mx1.provider.test,10"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let limits = format!(
        "[dns]\ngroups = true\nservers = [\"127.0.0.1:{}\"]\npatience = \"2s\"\n\
         [[throttle]]\nname = \"provider\"\nmx = [\".provider.test\"]\nrate = \"5/s\"\n",
        dns.port()
    );
    let config = story::config(&file, &file, 9, &format!("{limits}{ROUTE}"));
    let one = story::job(Lane::Bulk, "ada@one.example");
    let text = explain(&config, &one, &["--now"]);
    assert!(text.contains("group:relay:provider  5/s") && !text.contains("one.example"), "{text}");
    let text = explain(&config, &one, &[]);
    assert!(
        text.contains("group:relay:one.example  unlimited") && !text.contains("provider"),
        "nobody is asked: {text}"
    );
    dns.freeze();
    let text = explain(&config, &one, &["--now"]);
    dns.thaw();
    let line = "DNS did not tell the mail exchangers of one.example: each is its own group here\n";
    assert!(text.contains("group:relay:one.example  unlimited") && text.contains(line), "{text}");
}
