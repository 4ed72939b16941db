//! Traces of what is more than one attempt at one relay: a throttle and a retry on the way to success, and a call that several jobs share.

use std::collections::BTreeSet;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    fake_provider::{FakeProvider, Reaction},
    postrider::Postrider,
    rotel::Span,
    sink::{Options, SinkFault},
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use postrider_workers::telemetry::registry::attribute;

use crate::conventions::{Kind, assert_conventional, assert_told_nothing_else};
use crate::telemetry::{collector, consuming, is_process, publish_with_context, tree};

/// Two jobs before the worker starts, for one relay that takes a message a second and is silent at first: one of them waits for its
/// turn, and both come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_throttled_tried_again_and_sent_and_its_traces_tell_each() {
    let Some(rotel) = collector("throttle and retry") else { return };
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let relay = StallingRelay::start(StallPoint::Mail, 2).unwrap();
    let limits = "command_timeout = \"1s\"\nrate = \"1/s\"\nmessages_per_connection = 1\n";
    let jobs = [1, 2].map(|n| story::job(Lane::Transactional, &format!("ada-{n}@customer.example")));
    let traces = [1, 2].map(|n| format!("0af7651916cd43dd8448eb211c8031{n:02x}"));
    for (job, trace) in jobs.iter().zip(&traces) {
        publish_with_context(&env, job, &format!("00-{trace}-b7ad6b7169203331-01")).await;
    }
    let config = story::config(&env.amqp_url(), &env.redis_url(), relay.port(), &format!("{limits}{ROUTE}"));
    let launch = Postrider::command(["worker"]).config(config).env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let worker = consuming(launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint()));
    let is_sent = |span: &&Span| is_process(span) && span.attribute(attribute::OUTCOME) == Some("accepted");
    let spans =
        rotel.wait_for_spans("both jobs sent", SOON, |spans| spans.iter().filter(is_sent).count() == 2).unwrap();
    drop(worker);
    assert_conventional(&spans);
    assert_told_nothing_else(&rotel.said());

    let is_limit = |span: &&Span| span.attribute(attribute::WAIT_REASON) == Some("limit");
    let throttled: BTreeSet<&str> = spans.iter().filter(is_limit).map(|span| span.trace.as_str()).collect();
    let (job, trace) = jobs
        .iter()
        .zip(&traces)
        .find(|(_, trace)| throttled.contains(trace.as_str()))
        .expect("a job that waited for its turn");
    insta::assert_snapshot!("throttled_and_refused", tree(&spans, trace, &["limit"]));

    let id = job.id().to_string();
    let attempts: Vec<&Span> =
        spans.iter().filter(|span| is_process(span) && span.attribute(attribute::JOB_ID) == Some(&id)).collect();
    let first = attempts.iter().find(|span| span.trace == *trace).unwrap();
    let last = attempts.iter().find(|span| span.attribute(attribute::OUTCOME) == Some("accepted")).unwrap();
    insta::assert_snapshot!("then_sent", tree(&spans, &last.trace, &[]));
    assert_eq!(last.links.first(), Some(&(trace.clone(), "b7ad6b7169203331".to_owned())), "the creation");
    assert!(attempts.iter().any(|span| last.links.get(1) == Some(&(span.trace.clone(), span.id.clone()))));
    assert_eq!((first.parent.as_str(), last.parent.as_str()), ("b7ad6b7169203331", ""));
}

/// Everything goes by an API that takes several jobs in a call.
fn sharing(api: &FakeProvider) -> String {
    format!(
        "[transport.api]\nkind = \"sendgrid\"\napi_key = \"SG.k3y\"\nbase_url = \"{}\"\nbatch_linger = \"50ms\"\n\
         [[route]]\nname = \"all\"\nsend = [\"api\", \"relay\"]\n",
        api.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_jobs_share_is_one_span_that_points_at_each_of_them_and_they_at_it() {
    let Some(rotel) = collector("shared calls") else { return };
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let jobs: Vec<Job> = (0..30).map(|n| story::job(Lane::Bulk, &format!("ada-{n}@customer.example"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &sharing(&api));
    let launch = Postrider::command(["worker"]).config(config).env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let worker = consuming(launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint()));
    // The call ends before its jobs do; which batch of spans has which is open.
    let of = |spans: &[Span], name: &str| spans.iter().filter(|span| span.name == name).cloned().collect::<Vec<_>>();
    let is_enough = |spans: &[Span]| {
        let called: usize = of(spans, "POST").iter().map(|call| call.links.len()).sum();
        called == jobs.len() && spans.iter().filter(|span| is_process(span)).count() == jobs.len()
    };
    let spans = rotel.wait_for_spans("the call and its jobs", SOON, is_enough).unwrap();
    drop(worker);
    assert!(assert_conventional(&spans).contains(&Kind::Http));
    assert_told_nothing_else(&rotel.said());

    let (posts, shares) = (of(&spans, "POST"), of(&spans, "shared call"));
    assert!(posts.len() < jobs.len(), "they did share");
    let mut members = BTreeSet::new();
    for post in &posts {
        assert_eq!((post.kind.as_str(), post.parent.as_str()), ("client", ""));
        let count = post.links.len().to_string();
        assert_eq!(post.attribute(attribute::MESSAGING_BATCH_COUNT), Some(count.as_str()));
        assert_eq!(post.attribute(attribute::HTTP_STATUS), Some("202"));
        for link in &post.links {
            let share =
                shares.iter().find(|share| (&share.trace, &share.id) == (&link.0, &link.1)).expect("a job's step");
            assert_eq!(share.links, [(post.trace.clone(), post.id.clone())]);
            assert!(members.insert(share.trace.clone()) && share.trace != post.trace);
        }
        let context = format!("00-{}-{}-01", post.trace, post.id);
        assert!(api.calls().iter().any(|call| call.header("traceparent") == Some(context.as_str())));
    }
    let attempts: BTreeSet<String> =
        spans.iter().filter(|span| is_process(span)).map(|span| span.trace.clone()).collect();
    assert_eq!(members, attempts, "each job is in one call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_call_without_an_answer_is_told_with_its_jobs_where_nothing_is_sampled() {
    let Some(rotel) = collector("a lost shared call") else { return };
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::CutAfter).unwrap();
    let jobs: Vec<Job> = (0..3).map(|n| story::job(Lane::Bulk, &format!("ada-{n}@customer.example"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let launch = Postrider::command(["worker"])
        .config(story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &sharing(&api)))
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .env("OTEL_TRACES_SAMPLER", "traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0");
    let worker = consuming(launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint()));
    let is_enough = |spans: &[Span]| {
        let calls = spans.iter().filter(|span| span.name == "POST");
        calls.map(|call| call.links.len()).sum::<usize>() == jobs.len()
            && spans.iter().filter(|span| is_process(span)).count() == jobs.len()
    };
    let spans = rotel.wait_for_spans("the call and its jobs", SOON, is_enough).unwrap();
    drop(worker);
    assert_conventional(&spans);
    for call in spans.iter().filter(|span| span.name == "POST") {
        assert_eq!((call.status.as_str(), call.attribute(attribute::SAMPLED_BY)), ("error", Some("failure")));
        let is_there = |link: &(String, String)| spans.iter().any(|span| (&span.trace, &span.id) == (&link.0, &link.1));
        assert!(call.links.iter().all(is_there), "{call:#?}");
    }
    assert_eq!(api.calls()[0].header("traceparent").map(|context| context.ends_with("-00")), Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_commands_that_wait_for_their_answers_are_steps_of_their_own() {
    let Some(rotel) = collector("smtp steps") else { return };
    let sink = Options { faults: vec![SinkFault::NoPipelining], ..Options::default() };
    let env = TestEnv::start(&EnvSpec { sink: Some(sink), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let launch = Postrider::command(["worker"]).config(config).env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let worker = consuming(launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint()));
    let job = story::job_with(|job| job.to = vec!["ada@customer.example".into(), "bob@customer.example".into()]);
    story::publish(&env.amqp_url(), &[job]).await.unwrap();
    let spans = rotel.wait_for_spans("the attempt", SOON, |spans| spans.iter().any(is_process)).unwrap();
    drop(worker);
    let deliver = spans.iter().find(|span| span.name == "deliver").unwrap();
    let mut steps: Vec<&Span> = spans.iter().filter(|span| span.parent == deliver.id).collect();
    steps.retain(|span| span.name.starts_with("smtp "));
    let names: Vec<&str> = steps.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["smtp connect", "smtp hello", "smtp mail", "smtp rcpt", "smtp data", "smtp body"]);
    assert!(steps.iter().all(|span| span.status == "unset"));
}
