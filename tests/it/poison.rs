//! Messages under whose hands workers die: the broker never destroys one, quarantine tries them one at a time, and only what kills there as
//! well is given up.

use std::time::Duration;

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider_schemas::{
    Job, Lane,
    topology::{DEAD_QUEUE, SUSPECT_QUEUE, due_queue, jobs_queue},
};
use postrider_tests::{
    deadline,
    events::Events,
    fault_proxy::{FaultProxy, Faults},
    folder::Folder,
    postrider::Postrider,
    sink::{self, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// So often the message of the first story goes down with its consumer.
const LOST: u32 = 5;

/// Takes the only message of a queue and puts it back, so many times or until it rests in `dead`. Gives how often it did.
async fn give_back(channel: &Channel, queue: &str, times: u32) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    for count in 0..times {
        let got = deadline::wait_for_async("the message", SOON, async || {
            if let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
                return Some(Some(got));
            }
            // One that is on its way back is not there for a moment; one that is gone is in `dead`.
            let dead = channel.queue_declare(DEAD_QUEUE.into(), passive, FieldTable::default()).await.unwrap();
            (queue != DEAD_QUEUE && dead.message_count() > 0).then_some(None)
        });
        let Some(got) = got.await.unwrap() else { return count };
        let options = BasicNackOptions { requeue: true, multiple: false };
        channel.basic_nack(got.delivery.delivery_tag, options).await.unwrap();
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_returned_many_times_rests_in_dead_and_is_never_destroyed() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    // RabbitMQ 3.10 takes -1 and 0 for "destroy it at its first return".
    for queue in env.vhost().list("queues").unwrap() {
        let limit = &queue["arguments"]["x-delivery-limit"];
        assert!(limit.is_null() || limit.as_i64().unwrap() >= 200, "{queue:#}");
    }
    let job = story::job(Lane::Transactional, "ada@dest.example");
    story::publish(&env.amqp_url(), std::slice::from_ref(&job)).await.unwrap();
    let queue = jobs_queue(Lane::Transactional, 0);
    let connect = async || Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    for _ in 0..LOST {
        let connection = connect().await;
        let channel = connection.create_channel().await.unwrap();
        deadline::wait_for_async("the message, which was lost with its consumer", SOON, async || {
            channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
        })
        .await
        .unwrap();
        connection.close(200, "lost".into()).await.unwrap();
    }
    let connection = connect().await;
    let channel = connection.create_channel().await.unwrap();
    let returned = give_back(&channel, &queue, 250).await;
    assert!((200..=201).contains(&(LOST + returned)), "{returned}");
    // At rest nothing wears out: each look of a tool is a return.
    assert_eq!(give_back(&channel, DEAD_QUEUE, 300).await, 300);
    connection.close(200, "done".into()).await.unwrap();

    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let rows = story::rest("dead", &config).unwrap();
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!((&rows[0]["id"], &rows[0]["reason"]), (&job.id().to_string().into(), &"delivery-limit".into()));
    let worker = story::start(config.clone()).unwrap();
    let done = Postrider::command(["dead", "retry", "--all"]).config(config).run(SOON).unwrap();
    assert!(done.status.success() && done.stdout.contains("again 1"), "{}{}", done.stdout, done.stderr);
    env.sink().wait_for(1, SOON).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 1);
}

/// A worker's configuration: what belongs to the tenants `killer` and `neighbour` goes to relays of their own.
fn config(queue: &str, store: &str, sink: u16, killer: &FaultProxy, neighbour: &FaultProxy) -> String {
    let transport = |name: &str, proxy: &FaultProxy| {
        let port = proxy.port();
        format!("[transport.{name}]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {port}\n")
    };
    let route = |name: &str| {
        format!("[[route]]\nname = \"{name}\"\nsend = [\"{name}\"]\nwhen = {{ tenants = [\"{name}\"] }}\n")
    };
    let more = [
        transport("killer", killer),
        transport("neighbour", neighbour),
        route("killer"),
        route("neighbour"),
        ROUTE.to_owned(),
    ];
    story::config(queue, store, sink, &more.concat()).replace("lease = \"2s\"", "lease = \"3s\"")
}

fn job_of(tenant: &str) -> Job {
    story::job_with(|job| {
        job.tenant = Some(tenant.to_owned());
        job.to = vec![format!("{tenant}@dest.example").into()];
    })
}

/// The killer "kills" whenever it is in hand: its relay never greets, and the worker is lost while it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_workers_is_tried_alone_and_given_up_and_its_neighbours_arrive() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let mut events = Events::listen(&env.amqp_url()).await.unwrap();
    let (killer, neighbour) =
        (FaultProxy::start(env.sink().port()).unwrap(), FaultProxy::start(env.sink().port()).unwrap());
    killer.set(Faults::black_hole());
    neighbour.set(Faults::black_hole());
    let config = config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &killer, &neighbour);
    let (poison, innocent) = (job_of("killer"), job_of("neighbour"));
    story::publish(&env.amqp_url(), &[poison.clone(), innocent]).await.unwrap();
    let mut worker = story::start(config.clone()).unwrap();
    let (mut kills, mut others, mut seen) = (0, 0, 0);
    let dead = || story::depth(&env, DEAD_QUEUE).is_some_and(|depth| depth.total() > 0);
    while !dead() {
        if kills > 0 {
            worker.start_again().unwrap();
        }
        let jobs: Vec<Job> =
            (0..5).map(|n| story::job(Lane::Bulk, &format!("other-{kills}-{n}@dest.example"))).collect();
        others += jobs.len();
        story::publish(&env.amqp_url(), &jobs).await.unwrap();
        env.sink().wait_for(others, SOON).unwrap();
        deadline::wait_for("the killer in hand, or its end", SOON, || {
            let at_hand = killer.connections() > seen && (kills >= 3 || neighbour.connections() > kills);
            (at_hand || dead()).then_some(())
        })
        .unwrap();
        if dead() {
            break;
        }
        worker.kill9().unwrap();
        seen = killer.connections();
        kills += 1;
        if kills == 3 {
            // From now on the neighbour is as harmless as it always was.
            neighbour.set(Faults::default());
            neighbour.cut_all();
        }
        assert!(kills <= 6, "{}", worker.stderr());
    }
    assert_eq!(kills, 6, "three before quarantine, three in it: {}", worker.stderr());
    let rows = story::rest("dead", &config).unwrap();
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!((&rows[0]["id"], &rows[0]["reason"]), (&poison.id().to_string().into(), &"crash-poison".into()));
    let told = events.until("postrider.job.dead.v1").await.unwrap();
    let last = &told.last().unwrap()["data"];
    assert_eq!((&last["job_id"], &last["reason"]), (&poison.id().to_string().into(), &"crash-poison".into()));
    // It may have waited in quarantine until the killer was gone.
    others += 1;
    let stored = env.sink().wait_for(others, SOON).unwrap();
    let to = |name: &str| stored.iter().filter(|one| one.recipients() == [name]).count();
    assert_eq!((to("neighbour@dest.example"), to("killer@dest.example")), (1, 0));
    assert_eq!(stored.len(), others, "nobody twice");
    story::wait_for_depth(&env, SUSPECT_QUEUE, 0).unwrap();

    // Mended, it can be tried again, and begins without its past.
    killer.set(Faults::default());
    killer.cut_all();
    deadline::wait_for("the end of the lease of the last worker that was lost", SOON, || {
        let retry = Postrider::command(["dead", "retry", &poison.id().to_string()]).config(config.as_str());
        retry.run(SOON).unwrap().stdout.contains("again 1").then_some(())
    })
    .unwrap();
    env.sink().wait_for(others + 1, SOON).unwrap();
    drop(worker);
}

/// The same with a file for a queue. Its leases outlast a test: they are ended in the file, as if their time had passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_file_that_kills_workers_is_given_up_and_its_neighbours_arrive() {
    let folder = Folder::new("poison").unwrap();
    let path = folder.path().join("postrider.db");
    let file = format!("embedded:{}", path.display());
    let sink = SmtpSink::start(sink::Options::default()).unwrap();
    let killer = FaultProxy::start(sink.port()).unwrap();
    killer.set(Faults::black_hole());
    let config = config(&file, &file, sink.port(), &killer, &killer);
    let poison = job_of("killer");
    story::publish(&file, std::slice::from_ref(&poison)).await.unwrap();
    let mut worker = story::start_any(&config).unwrap();
    let dead = || story::rest("dead", &config).is_ok_and(|rows| !rows.is_empty());
    let (mut kills, mut seen) = (0, 0);
    loop {
        story::publish(&file, &[story::job(Lane::Bulk, &format!("other-{kills}@dest.example"))]).await.unwrap();
        sink.wait_for(kills + 1, SOON).unwrap();
        let at_hand = || (killer.connections() > seen || dead()).then_some(());
        deadline::wait_for("the killer in hand, or its end", SOON, at_hand).unwrap();
        if dead() {
            break;
        }
        worker.kill9().unwrap();
        (kills, seen) = (kills + 1, killer.connections());
        assert!(kills <= 6, "{}", worker.stderr());
        let db = rusqlite::Connection::open(&path).unwrap();
        db.busy_timeout(SOON).unwrap();
        db.execute("UPDATE message SET lease_until = 0", []).unwrap();
        worker.start_again().unwrap();
    }
    assert_eq!(kills, 6, "three before quarantine, three in it: {}", worker.stderr());
    let rows = story::rest("dead", &config).unwrap();
    assert_eq!((&rows[0]["id"], &rows[0]["reason"]), (&poison.id().to_string().into(), &"crash-poison".into()));
    drop(worker);
    assert_eq!(sink.count().unwrap(), kills + 1, "the others arrive, each once");
}

/// Two large jobs of which one at a time may be worked on: the first one is in hand whenever the worker is lost, the second one waits for its share.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_only_waited_in_lost_workers_is_not_put_aside() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let proxy = FaultProxy::start(env.sink().port()).unwrap();
    proxy.set(Faults::black_hole());
    let config = story::config(&env.amqp_url(), &env.redis_url(), proxy.port(), ROUTE)
        .replace("[worker]\n", "[worker]\nmemory = \"64MiB\"\n");
    let large = |name: &str| {
        story::job_with(|job| {
            job.to = vec![format!("{name}@dest.example").as_str().into()];
            job.text = Some("A line of some length.\n".repeat(140_000));
        })
    };
    let (first, second) = (large("first"), large("second"));
    story::publish(&env.amqp_url(), &[first.clone(), second.clone()]).await.unwrap();
    let mut worker = story::start(config).unwrap();
    for kills in 1..=3 {
        let waits = || (proxy.connections() >= kills).then_some(());
        deadline::wait_for("the first one in hand", SOON, waits).unwrap();
        // Both are in hand, and one connection was made.
        let queues = [jobs_queue(first.lane(), 0), due_queue(first.lane(), 0)];
        let both = || {
            let taken: Option<u64> = queues.iter().map(|queue| Some(story::depth(&env, queue)?.unacked)).sum();
            (taken? == 2).then_some(())
        };
        deadline::wait_for("both in hand", SOON, both).unwrap();
        worker.kill9().unwrap();
        if kills == 3 {
            proxy.set(Faults::default());
        }
        worker.start_again().unwrap();
    }
    env.sink().wait_for(2, Duration::from_secs(60)).unwrap();
    let log = worker.stderr() + &worker.stdout();
    let put_aside = |job: &Job| {
        let id = job.id().to_string();
        log.lines().any(|line| line.contains("it is quarantined") && line.contains(&id))
    };
    assert_eq!((put_aside(&first), put_aside(&second)), (true, false));
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 2, "each once");
}
