//! The main journey: what is published arrives, once, as it was asked, on RabbitMQ and Redis.

use postrider_schemas::{
    Job, Lane,
    job::Content,
    topology::{due_queue, jobs_queue},
};
use postrider_tests::{
    mail::Mail,
    postrider::Postrider,
    sink::SinkFault,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

fn addresses(list: &[postrider_tests::mail::Mailbox]) -> Vec<String> {
    list.iter().map(|one| one.address.clone()).collect()
}

fn asked(list: &[postrider_schemas::Mailbox]) -> Vec<String> {
    list.iter().map(|one| one.address().to_string()).collect()
}

/// Compares a received message with its job, by a parser that is not ours.
#[track_caller]
fn assert_is(name: &str, job: &Job, mail: &Mail) {
    assert_eq!(addresses(&mail.from), [job.from().address().to_string()], "{name}");
    assert_eq!(addresses(&mail.to), asked(job.to()), "{name}");
    assert_eq!(addresses(&mail.cc), asked(job.cc()), "{name}");
    assert!(mail.bcc.is_empty(), "{name}: no header names a bcc recipient");
    assert_eq!(addresses(&mail.reply_to), asked(job.reply_to()), "{name}");
    assert_eq!(mail.message_id.as_deref(), Some(job.message_id().trim_matches(['<', '>'])), "{name}");
    if let Content::Bodies { text, html } = job.content() {
        let lines = |text: &Option<String>| text.as_deref().map(|text| text.trim_end_matches('\n').to_owned());
        assert_eq!(mail.subject.as_deref(), Some(job.subject()), "{name}");
        assert_eq!(mail.text.as_deref().map(|text| text.trim_end_matches('\n').to_owned()), lines(text), "{name}");
        assert_eq!(mail.html.as_deref().map(|text| text.trim_end_matches('\n').to_owned()), lines(html), "{name}");
    } else {
        assert_eq!(mail.subject.as_deref(), Some("Order 4712 is on its way"), "{name}");
        assert!(mail.html.as_deref().is_some_and(|html| html.contains("John &lt;J&gt; &amp; Co")), "{name}");
    }
    assert_eq!(mail.attachments.len(), job.attachments().len(), "{name}");
    for (got, asked) in mail.attachments.iter().zip(job.attachments()) {
        assert_eq!(got.filename.as_deref(), Some(asked.filename.as_str()), "{name}");
        assert_eq!(got.content, asked.content, "{name}");
        assert_eq!(got.content_type, asked.content_type, "{name}");
        assert_eq!(got.content_id, asked.content_id, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_arrives_as_it_was_asked() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    let examples = story::examples().unwrap();
    let jobs: Vec<Job> = examples.iter().map(|(_, job)| job.clone()).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let stored = env.sink().wait_for(jobs.len(), SOON).unwrap();
    for (name, job) in &examples {
        let id = job.message_id();
        let stored = stored.iter().find(|one| String::from_utf8_lossy(&one.raw).contains(&id));
        let stored = stored.unwrap_or_else(|| panic!("{name} did not arrive"));
        assert_is(name, job, &Mail::parse(&stored.raw).unwrap());
        let recipients: Vec<String> = job.recipients().iter().map(|one| one.address.to_string()).collect();
        assert_eq!(stored.recipients(), recipients, "{name}");
    }
    assert_eq!(env.sink().count().unwrap(), jobs.len());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_published_three_times_is_delivered_once() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let job = story::job(Lane::Transactional, "ada@customer.example");
    let keyed = |id: bool| {
        story::job_with(|job| {
            job.idempotency_key = Some("order:1".to_owned());
            job.subject = if id { "one" } else { "other" }.to_owned();
        })
    };
    let last = story::job(Lane::Transactional, "last@customer.example");
    let jobs = [job.clone(), job.clone(), job, keyed(true), keyed(true)];
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(2, SOON).unwrap();
    // The same key with another payload is a conflict.
    story::publish(&env.amqp_url(), &[keyed(false), last]).await.unwrap();
    env.sink().wait_for(3, SOON).unwrap();
    postrider_tests::deadline::wait_for("a conflict in dead", SOON, || {
        let depths = env.vhost().queue_depths().ok()?;
        (depths.get("postrider.v1.dead")?.total() == 1).then_some(())
    })
    .unwrap();
    assert_eq!(env.sink().count().unwrap(), 3);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_bulk_job_is_held_and_resent_by_a_person() {
    let parts = EnvSpec { sink: Some(SinkFault::DropAfter(".").into()), ..EnvSpec::usual() };
    let env = TestEnv::start(&parts).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Bulk, "ada@customer.example")]).await.unwrap();
    let held = || {
        let depths = env.vhost().queue_depths().ok()?;
        (depths.get("postrider.v1.hold")?.total() == 1).then_some(())
    };
    postrider_tests::deadline::wait_for("the job in hold", SOON, held).unwrap();
    assert_eq!(env.sink().count().unwrap(), 1, "the relay stored it and said nothing");
    drop(worker);
    let healthy = postrider_tests::sink::SmtpSink::start(postrider_tests::sink::Options::default()).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), healthy.port(), ROUTE);
    let worker = Postrider::worker(config.clone()).unwrap();
    let done = Postrider::command(["hold", "resend", "--all"]).config(config).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    assert!(done.stdout.contains("again 1"), "{}", done.stdout);
    healthy.wait_for(1, SOON).unwrap();
    drop(worker);
}

/// Three workers are stopped one after the other with work in hand. The broker may lose acknowledgements that come just before a channel
/// closes: what is then delivered again, the ledger drops.
#[tokio::test(flavor = "multi_thread")]
async fn stops_under_load_lose_nothing_and_send_nothing_twice() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let jobs: Vec<Job> =
        (0..900).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let mut again = 0;
    for delivered in [50, 250, 450] {
        let mut worker = story::worker(&env, "").unwrap();
        env.sink().wait_for(delivered, SOON).unwrap();
        worker.terminate().unwrap();
        let status = worker.wait(SOON).unwrap();
        assert!(status.success(), "{status:?}: {}", worker.stderr());
        again += worker.stderr().matches("came again after its end").count();
    }
    let last = story::worker(&env, "").unwrap();
    env.sink().wait_for(jobs.len(), SOON).unwrap();
    for queue in [jobs_queue(Lane::Transactional, 0), jobs_queue(Lane::Bulk, 0), due_queue(Lane::Bulk, 0)] {
        story::wait_for_depth(&env, &queue, 0).unwrap();
    }
    again += last.stderr().matches("came again after its end").count();
    println!("published {}, stopped 3 workers, delivered again and dropped {again}", jobs.len());
    drop(last);
    assert_eq!(env.sink().count().unwrap(), jobs.len(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_can_be_cancelled_and_one_that_was_sent_says_so() {
    let env = TestEnv::start(&EnvSpec { rabbit: Server::Shared, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let soon = jiff::Timestamp::now() + std::time::Duration::from_secs(6);
    let waiting = story::job_with(|job| job.send_at = Some(soon));
    let sent = story::job(Lane::Transactional, "ada@customer.example");
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let worker = story::worker(&env, "").unwrap();
    story::publish(&env.amqp_url(), &[waiting.clone(), sent.clone()]).await.unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    let cancel = |id: String| Postrider::command(["cancel".to_owned(), id]).config(config.clone()).run(SOON).unwrap();
    let done = cancel(waiting.id().to_string());
    assert!(done.status.success() && done.stdout.contains("cancelled"), "{} {}", done.stdout, done.stderr);
    postrider_tests::deadline::wait_for("the sent job to be known", SOON, || {
        let done = cancel(sent.id().to_string());
        done.stdout.contains("too late").then_some(())
    })
    .unwrap();
    // The waiting job comes back, and is dropped.
    postrider_tests::deadline::wait_for("the cancelled job to end", SOON, || {
        worker.stderr().contains("cancelled").then_some(())
    })
    .unwrap();
    assert_eq!(env.sink().count().unwrap(), 1);
}
