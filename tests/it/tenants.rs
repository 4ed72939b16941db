//! Tenants share a broker, a store and workers, and cannot get in each other's way: not by ids, not by keys, not by publishing for each other.

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_producer::Publisher;
use postrider_schemas::{
    Job, JobId, Lane,
    permissions::PRODUCER,
    topology::{DEAD_QUEUE, SUBMIT_EXCHANGE, submit_key},
    wire,
};
use postrider_tests::{
    broker_users::BrokerUsers,
    events::Events,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

fn job_of(tenant: &str, id: Option<JobId>, key: Option<&str>) -> Job {
    story::job_with(|job| {
        job.id = id.or(job.id);
        job.tenant = Some(tenant.to_owned());
        job.idempotency_key = key.map(str::to_owned);
        job.subject = format!("For {tenant}");
        job.to = vec![format!("{tenant}@dest.example").into()];
    })
}

/// Jobs of two tenants with the same id, and with the same key; each id and key twice.
fn same_names() -> Vec<Job> {
    let (id, other) = (JobId::generate(), JobId::generate());
    let of = |tenant| [job_of(tenant, Some(id), None), job_of(tenant, Some(other), Some("order:1"))];
    let all = [of("shop"), of("news")].concat();
    [all.clone(), all].concat()
}

fn check_both(sink: &SmtpSink, config: &str) {
    let mails = sink.wait_for(4, SOON).unwrap();
    let to = |tenant: &str| {
        let address = format!("{tenant}@dest.example");
        mails.iter().filter(|mail| mail.recipients() == [address.as_str()]).count()
    };
    assert_eq!((to("shop"), to("news"), mails.len()), (2, 2, 4));
    assert!(story::rest("dead", config).unwrap().is_empty(), "a conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_with_the_same_id_and_key_both_get_their_mail() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let worker = story::start(config.clone()).unwrap();
    let jobs = same_names();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    check_both(env.sink(), &config);
    // The tools tell the one from the other.
    let id = jobs[0].id().to_string();
    let run = |args: &[&str]| Postrider::command(args.iter().copied()).config(config.clone()).run(SOON).unwrap();
    for tenant in ["shop", "news"] {
        let traced = run(&["trace", &id, "--tenant", tenant]);
        assert!(traced.stdout.contains("ledger: sent"), "{}", traced.stdout);
        assert!(run(&["cancel", &id, "--tenant", tenant]).stdout.contains("has been sent"));
    }
    let unknown = run(&["trace", &id]);
    assert!(unknown.stdout.contains("no record of tenant default"), "{}", unknown.stdout);
    let unseen = run(&["cancel", &id]);
    assert!(unseen.stderr.contains("cancel it with --tenant"), "{}{}", unseen.stdout, unseen.stderr);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_with_the_same_id_and_key_both_get_their_mail_out_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), ROUTE);
    let worker = Postrider::worker(config.clone()).unwrap();
    let jobs = same_names();
    story::publish(&file, &jobs).await.unwrap();
    check_both(&sink, &config);
    let id = jobs[0].id().to_string();
    let traced = Postrider::command(["trace", &id]).config(config.clone()).run(SOON).unwrap();
    assert!(traced.stdout.contains("of tenant news, shop: name it by --tenant"), "{}", traced.stdout);
    let traced = Postrider::command(["trace", &id, "--tenant", "shop"]).config(config).run(SOON).unwrap();
    assert!(traced.stdout.contains("ledger: sent") && traced.stdout.contains("accepted"), "{}", traced.stdout);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_broker_publishes_for_its_own_tenants_alone() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let users = BrokerUsers::make(env.vhost()).unwrap();
    let (url, user) = (users.url(PRODUCER.user), users.name(PRODUCER.user));
    let tenants = |list: &str| {
        story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE)
            .replace("[queue]\n", &format!("[queue]\ntenants = {{ \"{user}\" = {list} }}\n"))
    };
    let mut events = Events::listen(&env.amqp_url()).await.unwrap();
    let publisher = Publisher::connect(&url).await.unwrap().with_user_id(user.clone());
    let (ours, theirs, nobodys, expired) = (
        job_of("shop", None, None),
        job_of("bank", None, None),
        job_of("shop", None, None),
        job_of("bank", None, None),
    );
    // What the broker moves to `dead` before a worker sees it was never judged; nor does a second try let it through.
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default()
        .with_type(wire::JOB_TYPE.into())
        .with_message_id(expired.id().to_string().into())
        .with_user_id(user.as_str().into())
        .with_expiration("1".into());
    let body = wire::encode(&expired);
    let (key, options) = (submit_key(Lane::Transactional, 0), BasicPublishOptions::default());
    let confirm = channel.basic_publish(SUBMIT_EXCHANGE.into(), key.into(), options, &body, properties);
    confirm.await.unwrap().await.unwrap();
    story::wait_for_depth(&env, DEAD_QUEUE, 1).unwrap();

    let config = tenants("\"shop\"");
    let worker = story::start(config.clone()).unwrap();
    let run = |args: &[&str], config: &str| Postrider::command(args.iter().copied()).config(config).run(SOON).unwrap();
    assert!(run(&["dead", "retry", "--all"], &config).stdout.contains("again 1"));
    for job in [&ours, &theirs] {
        publisher.publish(job).await.unwrap();
    }
    story::publish(&url, std::slice::from_ref(&nobodys)).await.unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    story::wait_for_depth(&env, DEAD_QUEUE, 3).unwrap();
    let rows = story::rest("dead", &config).unwrap();
    for (job, detail) in [(&theirs, user.as_str()), (&expired, user.as_str()), (&nobodys, "user_id")] {
        let row = rows.iter().find(|row| row["id"] == job.id().to_string()).unwrap();
        assert_eq!(row["reason"], "publisher-not-allowed");
        assert!(row["detail"].as_str().unwrap().contains(detail), "{row}");
    }
    let told = events.until("postrider.job.dead.v1").await.unwrap();
    assert_eq!(told.last().unwrap()["data"]["reason"], "publisher-not-allowed");
    drop(worker);

    // A person who lets the user publish for that tenant too may have it sent.
    let config = tenants("[\"shop\", \"bank\"]");
    let worker = story::start(config.clone()).unwrap();
    assert!(run(&["dead", "retry", &theirs.id().to_string()], &config).stdout.contains("again 1"));
    env.sink().wait_for(2, SOON).unwrap();
    drop(worker);
    // Nobody publishes in another's name.
    let liar = Publisher::connect(&url).await.unwrap().with_user_id("guest");
    assert!(liar.publish(&ours).await.is_err());
}
