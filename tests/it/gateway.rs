//! Jobs over HTTP: what was answered with 202 is delivered once, and what was not can be sent again.

use std::{collections::BTreeSet, io::Write as _, time::Duration};

use postrider_schemas::permissions;
use postrider_tests::{
    broker_users::BrokerUsers,
    deadline,
    fault_proxy::{End, FaultProxy, Faults, Flow},
    gateway::{self, Gateway},
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};
use postrider_workers::telemetry::registry::INSTRUMENTS;

fn job(to: &str) -> String {
    format!(r#"{{"from": "The Shop <orders@shop.example>", "to": ["{to}"], "subject": "Hello", "text": "Hello."}}"#)
}

fn env() -> TestEnv {
    TestEnv::start(&EnvSpec { rabbit: Server::Shared, ..EnvSpec::usual() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_repeated_on_another_gateway_is_delivered_once() {
    let env = env();
    story::declare(&env).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = gateway::new_key(folder.path(), &[]).unwrap();
    let start = || Gateway::start(&env.amqp_url(), &env.redis_url(), folder.path(), &key, "").unwrap();
    let gateways = [start(), start()];
    let mut ids = BTreeSet::new();
    for gateway in gateways.iter().chain(&gateways) {
        let answer = gateway.send("order:1", &job("ada@customer.example")).unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        ids.insert(answer.json().unwrap()["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 1, "one answer for all repeats: {ids:?}");
    let batch = format!("{}\n{{}}\n{}\n", job("b@customer.example"), job("c@customer.example"));
    let answer =
        gateways[0].ask("POST", "/v1/jobs:batch", &[("content-type", "application/x-ndjson")], &batch).unwrap();
    let results = answer.json().unwrap();
    let statuses: Vec<_> = (0..3).map(|n| results["results"][n]["status"].as_u64().unwrap()).collect();
    assert_eq!((answer.status, statuses), (200, vec![202, 422, 202]));
    let worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(3, SOON).unwrap();
    // A last job shows that the repeats are through.
    gateways[1].send("order:2", &job("last@customer.example")).unwrap();
    env.sink().wait_for(4, SOON).unwrap();
    assert_eq!(env.sink().count().unwrap(), 4);
    drop(worker);
    let page = gateways[0].metrics().unwrap();
    assert!(page.contains("postrider_gateway_jobs_total{api=\"native\",result=\"queued\"} 4"), "{page}");
    let known: BTreeSet<String> = INSTRUMENTS.iter().map(|one| one.name.replace('.', "_")).collect();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap().trim_end_matches("_total").trim_end_matches("_seconds");
        assert!(known.contains(name), "{name} is in no table");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_queues_confirm_nothing_is_promised_and_a_repeat_is_delivered_once() {
    let env = env();
    story::declare(&env).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = gateway::new_key(folder.path(), &[]).unwrap();
    let (host, vhost) =
        env.amqp_url().rsplit_once('/').map(|(host, vhost)| (host.to_owned(), vhost.to_owned())).unwrap();
    let (login, port) = host.rsplit_once(':').unwrap();
    let proxy = FaultProxy::start(port.parse().unwrap()).unwrap();
    let login = login.rsplit_once('@').map_or("amqp://guest:guest", |(login, _)| login);
    let queue = format!("{login}@127.0.0.1:{}/{vhost}", proxy.port());
    let quick = "confirm_timeout = \"2s\"";
    let gateway = Gateway::start(&queue, &env.redis_url(), folder.path(), &key, quick).unwrap();
    // The broker takes the job, and its confirm is lost.
    let lost = Flow { end: Some((0, End::BlackHole)), ..Flow::default() };
    proxy.set(Faults { to_client: lost, ..Faults::default() });
    let answer = gateway.send("order:1", &job("ada@customer.example")).unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.to_lowercase().contains("retry-after: "), "{}", answer.head);
    // The broker is away.
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.cut_all();
    let answer = gateway.send("order:1", &job("ada@customer.example")).unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(gateway.ask("GET", "/readyz", &[], "").unwrap().status, 503);
    assert_eq!(gateway.ask("GET", "/healthz", &[], "").unwrap().status, 200);
    // It is back.
    proxy.set(Faults::default());
    deadline::wait_for("a confirm", SOON, || {
        gateway.send("order:1", &job("ada@customer.example")).ok().filter(|answer| answer.status == 202)
    })
    .unwrap();
    let _worker = story::worker(&env, "").unwrap();
    gateway.send("order:2", &job("last@customer.example")).unwrap();
    env.sink().wait_for(2, SOON).unwrap();
    story::wait_for_depth(&env, &postrider_schemas::topology::jobs_queue(postrider_schemas::Lane::Transactional, 0), 0)
        .unwrap();
    assert_eq!(env.sink().count().unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_on_a_file_follows_its_keys_and_answers_what_it_began_before_it_stops() {
    let sink = postrider_tests::sink::SmtpSink::start(postrider_tests::sink::Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let key = gateway::new_key(folder.path(), &["--sender-domain", "shop.example"]).unwrap();
    let mut gateway = Gateway::start(&file, &file, folder.path(), &key, "").unwrap();
    let _worker = Postrider::worker(story::config(&file, &file, sink.port(), ROUTE)).unwrap();
    assert_eq!(gateway.send("order:1", &job("ada@customer.example")).unwrap().status, 202);
    let other = job("ada@customer.example").replace("shop.example", "bank.example");
    assert_eq!(gateway.send("order:2", &other).unwrap().status, 403);
    // A second key works, and a revoked one ends, without a restart.
    let second = gateway::new_key(folder.path(), &[]).unwrap();
    let ask = |key: &str| {
        let bearer = format!("Bearer {key}");
        gateway::call(gateway.port(), "POST", "/v1/jobs", &[("authorization", &bearer)], "{}").unwrap().status
    };
    deadline::wait_for("the second key", SOON, || (ask(&second) == 422).then_some(())).unwrap();
    let id = second.split('_').nth(1).unwrap();
    let keys = folder.path().join("keys.toml").display().to_string();
    let done = Postrider::command(["keys", "revoke", "--keys", &keys, id]).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    deadline::wait_for("the end of the second key", SOON, || (ask(&second) == 401).then_some(())).unwrap();
    // Half of a request is there when the gateway is told to stop.
    let (mut stream, rest) = gateway.begin(&job("last@customer.example")).unwrap();
    // Connections are taken in their order: where a later one has its answer, that one was begun.
    assert_eq!(gateway.ask("GET", "/healthz", &[], "").unwrap().status, 200);
    gateway.program.terminate().unwrap();
    gateway.program.wait_for_output("Stopping", SOON).unwrap();
    stream.write_all(rest.as_bytes()).unwrap();
    assert_eq!(gateway::answer(stream).unwrap().status, 202);
    assert!(gateway.program.wait(SOON).unwrap().success());
    sink.wait_for(2, SOON).unwrap();
    assert_eq!(sink.count().unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_seen_moved_and_called_back_by_its_own_tenant_whatever_gateway_took_it() {
    let env = env();
    story::declare(&env).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = gateway::new_key(folder.path(), &[]).unwrap();
    let news = gateway::new_key_of("news", folder.path(), &[]).unwrap();
    let (redis, database) = env.redis_url().rsplit_once('/').map(|(url, n)| (url.to_owned(), n.to_owned())).unwrap();
    let proxy = FaultProxy::start(redis.rsplit_once(':').unwrap().1.parse().unwrap()).unwrap();
    let store = format!("redis://127.0.0.1:{}/{database}", proxy.port());
    let users = BrokerUsers::make(env.vhost()).unwrap();
    let queue = users.url(permissions::GATEWAY.user);
    let start = |store: &str, key: &str| Gateway::start(&queue, store, folder.path(), key, "").unwrap();
    let (one, other) = (start(&env.redis_url(), &key), start(&store, &key));
    let taken = |answer: gateway::Answer| {
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json().unwrap()["id"].as_str().unwrap().to_owned()
    };
    let due = jiff::Timestamp::now() + Duration::from_secs(4);
    let scheduled = |to: &str| job(to).replacen('{', &format!("{{\"send_at\": \"{due}\", "), 1);
    let moved = taken(one.send("moved", &scheduled("moved@customer.example")).unwrap());
    let called_back = taken(one.send("called-back", &scheduled("never@customer.example")).unwrap());
    assert_eq!(other.send("moved", &scheduled("other@customer.example")).unwrap().status, 422, "another payload");
    let path = |id: &str| format!("/v1/jobs/{id}");
    let status = |gateway: &Gateway, id: &str| {
        gateway.ask("GET", &path(id), &[], "").unwrap().json().unwrap()["status"].as_str().map(str::to_owned)
    };
    assert_eq!(status(&other, &moved).as_deref(), Some("scheduled"));
    let bearer = format!("Bearer {news}");
    let of_news = |method, id: &str| {
        gateway::call(one.port(), method, &path(id), &[("authorization", &bearer)], "").unwrap().status
    };
    assert_eq!((of_news("GET", &moved), of_news("DELETE", &moved)), (404, 404));
    // No worker has any of them in hand yet, which would be refused with 409.
    let later = due + Duration::from_secs(2);
    let answer = other.ask("PATCH", &path(&moved), &[], &format!("{{\"send_at\": \"{later}\"}}")).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(other.ask("DELETE", &path(&called_back), &[], "").unwrap().status, 200);
    assert_eq!(status(&one, &called_back).as_deref(), Some("cancelled"));
    let _worker = story::worker(&env, "").unwrap();
    // The store is away for one gateway: jobs are taken, questions are not answered.
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.cut_all();
    taken(other.send("without-the-store", &job("plain@customer.example")).unwrap());
    deadline::wait_for("an answer without the store", SOON, || {
        (other.ask("GET", &path(&moved), &[], "").unwrap().status == 503).then_some(())
    })
    .unwrap();
    env.sink().wait_for(2, SOON).unwrap();
    assert!(jiff::Timestamp::now() >= later, "the later time holds");
    deadline::wait_for("the end of the job", SOON, || (status(&one, &moved).as_deref() == Some("sent")).then_some(()))
        .unwrap();
    assert_eq!(env.sink().count().unwrap(), 2);
}
