//! What producers write into headers and properties decides nothing, and what only workers may say is out of their reach.

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldArray, FieldTable, LongString},
};
use postrider_producer::embedded::publisher::EmbeddedPublisher;
use postrider_schemas::{
    Job, Lane, Meta,
    meta::{Pin, Rest},
    permissions::{PRODUCER, TOOL, TOPOLOGY, WORKER},
    topology::{
        DEAD_EXCHANGE, DEAD_QUEUE, DUE_EXCHANGE, EVENTS_EXCHANGE, SUBMIT_EXCHANGE, due_queue, jobs_queue, submit_key,
    },
    wire,
};
use postrider_tests::{
    broker_users::BrokerUsers,
    deadline,
    fault_proxy::FaultProxy,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// One forged header, or several, with its name in a message.
type Forged = Vec<(&'static str, AMQPValue)>;

/// Every header that workers write and producers may not, with the values that hurt.
fn forged() -> Vec<Forged> {
    let mut list: Vec<Forged> = [
        ("postrider-generation", "4294967295"),
        ("postrider-generation", "1"),
        ("postrider-attempt", "4294967295"),
        ("postrider-parks", "4294967295"),
        ("postrider-waits", "4294967295"),
        ("postrider-unknowns", "4294967295"),
        ("postrider-losses", "9"),
        ("postrider-not-before", "2226-01-01T00:00:00Z"),
        ("postrider-pending", ""),
        ("postrider-pending", "7"),
        ("postrider-part", "2"),
        ("postrider-pin", "2026-01-01T00:00:00Z 2226-01-01T00:00:00Z other"),
        ("postrider-rest-reason", "conflict"),
        ("postrider-rest-times", "4294967295"),
        ("postrider-publisher", "somebody"),
        ("postrider-last", "450 later"),
        ("x-delivery-count", "100"),
        ("traceparent", "not one"),
    ]
    .map(|(name, value)| vec![(name, text(value))])
    .into();
    list.push(vec![("postrider-pending", text(&"0,".repeat(30_000)))]);
    list.push(vec![("postrider-generation", AMQPValue::LongLongInt(i64::from(u32::MAX)))]);
    let death = {
        let mut entry = FieldTable::default();
        entry.insert("queue".into(), text("postrider.v1.due.bulk.00"));
        entry.insert("reason".into(), text("delivery_limit"));
        AMQPValue::FieldTable(entry)
    };
    list.push(vec![("x-death", AMQPValue::FieldArray(FieldArray::from(vec![death])))]);
    // A second message of the same job in the other lane.
    let other_lane = AMQPValue::FieldArray(FieldArray::from(vec![text("bulk.00")]));
    list.push(vec![("CC", other_lane.clone()), ("postrider-generation", text("3"))]);
    list.push(vec![("BCC", other_lane)]);
    list
}

async fn channel(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

fn properties(job: &Job, headers: &Forged) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default()
        .with_type(wire::JOB_TYPE.into())
        .with_message_id(job.id().to_string().into())
        .with_headers(table)
}

/// False where the broker refuses it.
async fn put(channel: &Channel, exchange: &str, key: &str, job: &Job, properties: BasicProperties) -> bool {
    let options = BasicPublishOptions::default();
    let body = wire::encode(job);
    let Ok(confirm) = channel.basic_publish(exchange.into(), key.into(), options, &body, properties).await else {
        return false;
    };
    matches!(confirm.await, Ok(Confirmation::Ack(_)))
}

/// Jobs go to `relay`; those of the tenant `bank` to `other`.
fn two_ways(queue: &str, store: &str, sink: &SmtpSink, other: &FaultProxy) -> String {
    let port = other.port();
    let more = format!(
        "[transport.other]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {port}\n\
         [[route]]\nname = \"bank\"\nsend = [\"other\"]\nwhen = {{ tenants = [\"bank\"] }}\n{ROUTE}"
    );
    story::config(queue, store, sink.port(), &more)
}

/// One of three recipients each, so that a forged list would change who gets it.
fn jobs(count: usize) -> Vec<Job> {
    let people = |n: usize| ["a", "b", "c"].map(|name| format!("{name}{n}@dest.example").into()).into();
    (0..count).map(|n| story::job_with(|job| job.to = people(n))).collect()
}

/// Every job arrived once, whole.
fn check_arrived(sink: &SmtpSink, jobs: &[Job]) {
    let mails = sink.messages().unwrap();
    for job in jobs {
        let id = job.message_id();
        let mut found = mails.iter().filter(|mail| String::from_utf8_lossy(&mail.raw).contains(&id));
        assert_eq!(found.next().map(|mail| mail.recipients().len()), Some(3), "{id}");
        assert!(found.next().is_none(), "{id} was sent twice");
    }
    assert_eq!(mails.len(), jobs.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_header_loses_a_job_or_sends_it_twice_or_elsewhere() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let other = FaultProxy::start(env.sink().port()).unwrap();
    let config = two_ways(&env.amqp_url(), &env.redis_url(), env.sink(), &other);
    let channel = channel(&env.amqp_url()).await;
    let forged = forged();
    let jobs = jobs(forged.len() + 1);
    let key = submit_key(Lane::Transactional, 0);
    // This one goes to `dead` by the broker's own hand, forged headers and all, before any worker sees it.
    let (late, jobs_at_once) = jobs.split_last().unwrap();
    let expiring = properties(late, &forged[0]).with_expiration("1".into());
    assert!(put(&channel, SUBMIT_EXCHANGE, &key, late, expiring).await);
    story::wait_for_depth(&env, DEAD_QUEUE, 1).unwrap();
    assert_eq!(story::rest("dead", &config).unwrap()[0]["reason"], "message-ttl");

    let worker = story::start(config.clone()).unwrap();
    // And once more with the headers of the next one.
    for round in 0..2 {
        for (n, job) in jobs_at_once.iter().enumerate() {
            let headers = &forged[(n + round) % forged.len()];
            let sent =
                put(&channel, SUBMIT_EXCHANGE, &key, job, properties(job, headers).with_timestamp(u64::MAX)).await;
            assert!(sent, "{headers:?}");
        }
        env.sink().wait_for(jobs_at_once.len(), SOON).unwrap();
    }
    let done = Postrider::command(["dead", "retry", "--all"]).config(config.clone()).run(SOON).unwrap();
    assert!(done.status.success() && done.stdout.contains("again 1"), "{}{}", done.stdout, done.stderr);
    env.sink().wait_for(jobs.len(), SOON).unwrap();
    let is_idle = || {
        let depths = env.vhost().queue_depths().ok()?;
        depths.values().all(|depth| depth.total() == 0).then_some(())
    };
    deadline::wait_for("every queue empty, dead and hold too", SOON, is_idle).unwrap();
    drop(worker);
    check_arrived(env.sink(), &jobs);
    assert_eq!(other.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_fresh_work_in_the_file_is_believed_as_little() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let other = FaultProxy::start(sink.port()).unwrap();
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let pin = Pin { transport: "other".into(), since: at("2026-01-01T00:00:00Z"), until: at("2226-01-01T00:00:00Z") };
    let rest = Rest {
        reason: "conflict".into(),
        detail: String::new(),
        at: at("2026-01-01T00:00:00Z"),
        times: 1,
        lane: None,
        transport: None,
    };
    let metas = [
        Meta { generation: u32::MAX, ..Meta::default() },
        Meta { generation: 1, ..Meta::default() },
        Meta { attempt: u32::MAX, waits: u32::MAX, losses: 9, ..Meta::default() },
        Meta { not_before: Some(at("2226-01-01T00:00:00Z")), ..Meta::default() },
        Meta { pending: Some(vec![1]), part: Some(2), ..Meta::default() },
        Meta { pin: Some(pin), rest: Some(rest), ..Meta::default() },
    ];
    let jobs = jobs(metas.len());
    let publisher = EmbeddedPublisher::open(&path).await.unwrap();
    let config = two_ways(&file, &file, &sink, &other);
    let worker = Postrider::worker(config.clone()).unwrap();
    for round in 0..2 {
        for (n, job) in jobs.iter().enumerate() {
            publisher.publish(job, &metas[(n + round) % metas.len()]).await.unwrap();
        }
        sink.wait_for(jobs.len(), SOON).unwrap();
    }
    // One more job: what was published before it has been taken by then.
    let last = self::jobs(1);
    publisher.publish(&last[0], &Meta::default()).await.unwrap();
    sink.wait_for(jobs.len() + 1, SOON).unwrap();
    drop(worker);
    check_arrived(&sink, &[jobs, last].concat());
    assert_eq!(other.connections(), 0);
    for which in ["dead", "hold"] {
        assert!(story::rest(which, &config).unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_no_worker_makes_rests_in_dead_whole() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let other = FaultProxy::start(env.sink().port()).unwrap();
    let config = two_ways(&env.amqp_url(), &env.redis_url(), env.sink(), &other);
    let worker = story::start(config.clone()).unwrap();
    let channel = channel(&env.amqp_url()).await;
    let bad: [(&str, &str); 7] = [
        ("postrider-generation", "4294967295"),
        ("postrider-generation", "more"),
        ("postrider-pending", "0,0"),
        ("postrider-pending", "0,3"),
        ("postrider-part", "1"),
        ("postrider-pin", "2026-01-01T00:00:00Z 2226-01-01T00:00:00Z relay"),
        ("postrider-pin", "nowhere"),
    ];
    let jobs = jobs(bad.len() + 2);
    let due = due_queue(Lane::Transactional, 0);
    for (job, (name, value)) in jobs.iter().zip(bad) {
        let properties = properties(job, &vec![(name, text(value))]);
        assert!(put(&channel, "", &due, job, properties).await, "{name}");
    }
    // A time that no wait reaches is none, and a call to a transport that its route does not name is nobody's.
    let [.., timed, pinned] = jobs.as_slice() else { panic!() };
    let far = vec![("postrider-not-before", text("2226-01-01T00:00:00Z"))];
    assert!(put(&channel, "", &due, timed, properties(timed, &far)).await);
    let now = jiff::Timestamp::now();
    let pin = format!("{now} {} other", now + std::time::Duration::from_mins(10));
    assert!(put(&channel, "", &due, pinned, properties(pinned, &vec![("postrider-pin", text(&pin))])).await);
    // That one is asked for at no transport, by the schedule to its end.
    story::wait_for_depth(&env, DEAD_QUEUE, u64::try_from(bad.len() + 1).unwrap()).unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    let rows = story::rest("dead", &config).unwrap();
    let given_up = rows.iter().find(|row| row["id"] == pinned.id().to_string()).unwrap();
    assert_eq!(given_up["reason"], "retries-exhausted");
    for ((name, _), job) in bad.iter().zip(&jobs) {
        let row = rows.iter().find(|row| row["id"] == job.id().to_string()).unwrap();
        assert_eq!(row["reason"], "unreadable");
        assert!(row["detail"].as_str().unwrap().contains(name), "{row}");
    }
    drop(worker);
    check_arrived(env.sink(), std::slice::from_ref(timed));
    assert_eq!(other.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_workers_and_tools_need_no_more_than_the_shipped_permissions_and_a_producer_reaches_no_copies() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    let users = BrokerUsers::make(env.vhost()).unwrap();
    let declared = Postrider::command(["topology", "apply", "--queue", &users.url(TOPOLOGY.user)]).run(SOON).unwrap();
    assert!(declared.status.success(), "{}", declared.stderr);

    let job = story::job(Lane::Transactional, "ada@dest.example");
    let producer = users.url(PRODUCER.user);
    for (exchange, key) in [
        ("", due_queue(Lane::Transactional, 0)),
        ("", jobs_queue(Lane::Transactional, 0)),
        (DUE_EXCHANGE, "0.0.0.0.0.0.0.transactional.00".to_owned()),
        ("postrider.delay.0", "0.0.0.0.0.0.1.transactional.00".to_owned()),
        (DEAD_EXCHANGE, "hold.transactional.00".to_owned()),
        (DEAD_EXCHANGE, "suspect.transactional.00".to_owned()),
        (EVENTS_EXCHANGE, "postrider.job.accepted.v1.shop".to_owned()),
        (SUBMIT_EXCHANGE, "elsewhere".to_owned()),
    ] {
        let channel = channel(&producer).await;
        assert!(!put(&channel, exchange, &key, &job, properties(&job, &Vec::new())).await, "{exchange} {key}");
    }

    let config = |user: &str| {
        story::config(&users.url(user), &env.redis_url(), env.sink().port(), ROUTE)
            .replace("[queue]\n", "[queue]\ntopology = \"verify\"\n")
    };
    let worker = story::start(config(WORKER.user)).unwrap();
    // One that waits in the ladder, one that goes at once, one that is no job.
    let later = story::job_with(|job| job.send_at = Some(jiff::Timestamp::now() + std::time::Duration::from_secs(4)));
    story::publish(&producer, &[job.clone(), later]).await.unwrap();
    let channel = channel(&producer).await;
    let broken = properties(&job, &Vec::new()).with_type("something else".into());
    assert!(put(&channel, SUBMIT_EXCHANGE, &submit_key(Lane::Bulk, 0), &job, broken).await);
    env.sink().wait_for(2, SOON).unwrap();
    story::wait_for_depth(&env, DEAD_QUEUE, 1).unwrap();
    let tool = config(TOOL.user);
    assert_eq!(story::rest("dead", &tool).unwrap().len(), 1);
    for command in [
        &["status"][..],
        &["dead", "drop", "--all"],
        &["cancel", &postrider_schemas::JobId::generate().to_string(), "--unseen"],
    ] {
        let done = Postrider::command(command.iter().copied()).config(tool.clone()).run(SOON).unwrap();
        assert!(done.status.success(), "{command:?} {}{}", done.stdout, done.stderr);
    }
    story::wait_for_depth(&env, DEAD_QUEUE, 0).unwrap();
    let mut events = Postrider::command(["events"]).config(tool).start().unwrap();
    // Bound once it shows an event.
    deadline::wait_for_async("an event for a tool", SOON, async || {
        story::publish(&producer, &[story::job(Lane::Bulk, "ada@dest.example")]).await.ok()?;
        events.stdout().contains("accepted").then_some(())
    })
    .await
    .unwrap();
    events.terminate().unwrap();
    drop(worker);
}
