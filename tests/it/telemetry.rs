//! What a worker tells of itself, as others receive it: rotel the spans, promtool the page. And that telling costs no mail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_schemas::{
    Job, Lane,
    topology::{SUBMIT_EXCHANGE, submit_key},
    wire::{self, JOB_CONTENT_TYPE, JOB_TYPE},
};
use postrider_tests::{
    aiosmtpd::Tls,
    deadline,
    fake_provider::{FakeProvider, Reaction},
    http::Endpoint,
    ports,
    postfix::{PASSWORD, USER},
    postrider::{Launch, Postrider},
    process::{self, find},
    rotel::{Rotel, Span},
    say_skipped,
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use postrider_workers::telemetry::registry::{self, INSTRUMENTS, attribute};

use crate::conventions::{Kind, assert_conventional, assert_told_nothing_else};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER_SPAN: &str = "b7ad6b7169203331";

/// A collector, or a loud word that there is none on this machine.
pub(crate) fn collector(test: &str) -> Option<Rotel> {
    if Rotel::program().is_none() {
        say_skipped(test, "rotel is not installed: run tests/setup.sh");
        return None;
    }
    Some(Rotel::start().unwrap())
}

pub(crate) fn consuming(launch: Launch) -> Postrider {
    let mut worker = launch.start().unwrap();
    worker.wait_for_output("Consuming", SOON).unwrap();
    worker
}

/// Publishes as any client of any language does: with a `traceparent` of its own.
pub(crate) async fn publish_with_context(env: &TestEnv, job: &Job, traceparent: &str) {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(LongString::from(traceparent)));
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(JOB_CONTENT_TYPE.into())
        .with_type(JOB_TYPE.into())
        .with_message_id(job.id().to_string().into())
        .with_timestamp(u64::try_from(jiff::Timestamp::now().as_second()).unwrap())
        .with_headers(headers);
    let (key, options) =
        (submit_key(job.lane(), 0), BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() });
    let confirm = channel
        .basic_publish(SUBMIT_EXCHANGE.into(), key.into(), options, &wire::encode(job), properties)
        .await
        .unwrap();
    assert!(confirm.await.unwrap().is_ack());
    connection.close(200, "bye".into()).await.unwrap();
}

/// The spans of a trace as a tree: one line each, children below their parent in the order of their names. A copy that comes off the ladder a little
/// early waits in the worker, or does not: of waits, those are shown whose reason is named.
pub(crate) fn tree(spans: &[Span], trace: &str, waits: &[&str]) -> String {
    fn branch(spans: &[&Span], parent: &str, depth: usize, out: &mut String) {
        let mut children: Vec<&&Span> = spans.iter().filter(|span| span.parent == parent).collect();
        children.sort_by(|a, b| a.name.cmp(&b.name));
        for span in children {
            let links = if span.links.is_empty() { String::new() } else { format!(", {} links", span.links.len()) };
            let indent = "  ".repeat(depth);
            let _ = writeln!(out, "{indent}{} ({}, {}{links})", span.name, span.kind, span.status);
            branch(spans, &span.id, depth + 1, out);
        }
    }
    let is_shown = |span: &Span| {
        span.name != "wait" || span.attribute(attribute::WAIT_REASON).is_some_and(|reason| waits.contains(&reason))
    };
    let spans: Vec<&Span> = spans.iter().filter(|span| span.trace == trace && is_shown(span)).collect();
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let mut out = String::new();
    let roots: BTreeSet<&str> =
        spans.iter().map(|span| span.parent.as_str()).filter(|parent| !ids.contains(parent)).collect();
    for root in roots {
        branch(&spans, root, 0, &mut out);
    }
    out
}

pub(crate) fn is_process(span: &Span) -> bool {
    span.name.starts_with("process ")
}

/// The attributes that the conventions for messaging want, and ours.
#[track_caller]
fn assert_describes(span: &Span, job: &Job) {
    let of = |name: &str| span.attribute(name).unwrap_or_else(|| panic!("{name} of {span:#?}"));
    let id = job.id().to_string();
    assert_eq!((of(attribute::JOB_ID), of(attribute::MESSAGING_MESSAGE_ID)), (id.as_str(), id.as_str()));
    assert_eq!(of(attribute::MESSAGING_SYSTEM), "rabbitmq");
    assert_eq!(
        (of(attribute::MESSAGING_OPERATION_NAME), of(attribute::MESSAGING_OPERATION_TYPE)),
        ("process", "process")
    );
    assert_eq!(of(attribute::MESSAGING_DESTINATION), "postrider.v1.jobs.transactional.00");
    assert_eq!(of(attribute::MESSAGING_TEMPLATE), "postrider.v1.jobs.{lane}.{shard}");
    assert_eq!((of(attribute::OUTCOME), of(attribute::CLASS)), ("refused", "transient"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_any_client_is_one_trace_with_its_producer_and_a_retry_is_linked_to_both() {
    let Some(rotel) = collector("spans") else { return };
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    // It says nothing to the first MAIL, and is sound afterwards.
    let relay = StallingRelay::start(StallPoint::Mail, 1).unwrap();
    let config =
        story::config(&env.amqp_url(), &env.redis_url(), relay.port(), &format!("command_timeout = \"1s\"\n{ROUTE}"));
    let worker = consuming(
        Postrider::command(["worker"])
            .config(config)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint())
            .env("OTEL_METRIC_EXPORT_INTERVAL", "1000")
            .env("OTEL_BSP_SCHEDULE_DELAY", "200"),
    );
    let job = story::job(Lane::Transactional, "ada@customer.example");
    publish_with_context(&env, &job, &format!("00-{TRACE}-{PRODUCER_SPAN}-01")).await;
    let spans =
        rotel.wait_for_spans("two attempts", SOON, |spans| spans.iter().filter(|span| is_process(span)).count() == 2);
    let spans = spans.unwrap();

    let first =
        spans.iter().find(|span| is_process(span) && span.trace == TRACE).expect("an attempt in the producer's trace");
    assert_eq!((first.parent.as_str(), first.links.as_slice()), (PRODUCER_SPAN, [].as_slice()));
    assert_eq!(
        tree(&spans, TRACE, &[]),
        "process postrider.v1.jobs.transactional (consumer, unset)\n  \
           claim (client, unset)\n  \
           deliver (client, error)\n    \
             compose (internal, unset)\n    \
             smtp connect (internal, unset)\n    \
             smtp envelope (internal, error)\n    \
             smtp hello (internal, unset)\n    \
             submitting (client, unset)\n  \
           send postrider.events (client, unset)\n  \
           settle (client, unset)\n"
    );
    assert_describes(first, &job);
    let envelope = spans.iter().find(|span| span.name == "smtp envelope").unwrap();
    assert_eq!(envelope.attribute(attribute::SMTP_COMMANDS), Some("MAIL RCPT DATA"));
    let settled = spans.iter().find(|span| span.trace == TRACE && span.name == "settle").unwrap();
    assert_eq!(settled.attribute(attribute::SETTLEMENT), Some("again"));

    let second = spans.iter().find(|span| is_process(span) && span.trace != TRACE).expect("a trace of its own");
    let links = [(TRACE.to_owned(), PRODUCER_SPAN.to_owned()), (TRACE.to_owned(), first.id.clone())];
    assert_eq!((second.parent.as_str(), second.links.as_slice()), ("", links.as_slice()));
    assert_eq!(
        tree(&spans, &second.trace, &[]),
        "process postrider.v1.due.transactional (consumer, unset, 2 links)\n  \
           claim (client, unset)\n  \
           deliver (client, unset)\n    \
             compose (internal, unset)\n    \
             smtp body (internal, unset)\n    \
             smtp connect (internal, unset)\n    \
             smtp envelope (internal, unset)\n    \
             smtp hello (internal, unset)\n    \
             submitting (client, unset)\n  \
           finish (client, unset)\n  \
           send postrider.events (client, unset)\n  \
           settle (client, unset)\n"
    );
    assert_eq!(
        (second.attribute(attribute::OUTCOME), second.attribute(attribute::ATTEMPT)),
        (Some("accepted"), Some("2"))
    );

    // The log names the same traces.
    for span in [first, second] {
        assert!(worker.stderr().contains(&span.trace), "{}", span.trace);
    }
    drop(worker);
    let kinds = assert_conventional(&spans);
    assert!(
        kinds.is_superset(&BTreeSet::from([Kind::Process, Kind::Send, Kind::Settle, Kind::Store, Kind::Relay])),
        "{kinds:?}"
    );
    assert_told_nothing_else(&rotel.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_context_is_ignored_and_a_call_carries_ours_to_the_api() {
    let Some(rotel) = collector("context of calls") else { return };
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let hook = format!(
        "[transport.hook]\nkind = \"webhook\"\nbase_url = \"{}/t0ken?key=s3cret\"\nsecret = \"whsec_c2VjcmV0c2VjcmV0c2VjcmV0\"\n",
        api.url()
    );
    let route = "[[route]]\nname = \"all\"\nsend = [\"hook\", \"relay\"]\n";
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &format!("{hook}{route}"));
    let launch = Postrider::command(["worker"]).config(config).env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let worker = consuming(launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint()));
    let job = story::job(Lane::Transactional, "ada@customer.example");
    publish_with_context(&env, &job, "00-0af7651916cd43dd8448eb211c80319c-nonsense-01").await;
    let spans = rotel.wait_for_spans("an attempt", SOON, |spans| spans.iter().any(is_process)).unwrap();
    let process = spans.iter().find(|span| is_process(span)).unwrap();
    assert_eq!((process.parent.as_str(), process.links.len()), ("", 0));
    assert_ne!(process.trace, TRACE);
    let post = spans.iter().find(|span| span.name == "POST").expect("a call");
    assert_eq!(post.kind, "client");
    assert_eq!(post.attribute(attribute::HTTP_STATUS), Some("202"));
    assert!(post.attribute(attribute::URL_FULL).unwrap().ends_with("/REDACTED"), "{post:#?}");
    assert!(assert_conventional(&spans).contains(&Kind::Http));
    let calls = api.calls();
    assert_eq!(calls.len(), 1);
    let expected = format!("00-{}-{}-01", post.trace, post.id);
    assert_eq!(calls[0].header("traceparent"), Some(expected.as_str()));
    drop(worker);
    assert_told_nothing_else(&rotel.said());
    for secret in ["t0ken", "s3cret", "whsec"] {
        assert!(!rotel.said().contains(secret), "the collector was told a secret");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_traces_that_are_not_sampled_failures_are_told() {
    let Some(rotel) = collector("sampling") else { return };
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let launch = Postrider::command(["worker"])
        .config(story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint())
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .env("OTEL_TRACES_SAMPLER", "traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0");
    let worker = consuming(launch);
    let good = story::job(Lane::Bulk, "ada@customer.example");
    let bad = story::job_with(|job| {
        job.template =
            Some(postrider_schemas::wire::TemplateV1 { text: Some("{{ missing }}".to_owned()), ..Default::default() });
        job.text = None;
    });
    story::publish(&env.amqp_url(), &[good, bad.clone()]).await.unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    let spans = rotel.wait_for_spans("the failure", SOON, |spans| spans.iter().any(is_process)).unwrap();
    drop(worker);
    let spans = if spans.is_empty() { spans } else { rotel.spans().unwrap() };
    let told: Vec<&Span> = spans.iter().filter(|span| is_process(span)).collect();
    let id = bad.id().to_string();
    assert_eq!(told.iter().map(|span| span.attribute(attribute::JOB_ID)).collect::<Vec<_>>(), [Some(id.as_str())]);
    assert_eq!((told[0].status.as_str(), told[0].attribute(attribute::SAMPLED_BY)), ("error", Some("failure")));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_most_verbose_level_no_secret_and_no_body_is_said() {
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::StartTls), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let relay = format!(
        "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\n",
        env.aiosmtpd().ca_file().display()
    );
    let more = format!(
        "[transport.api]\nkind = \"sendgrid\"\napi_key = \"SG.k3y\"\nbase_url = \"{}\"\nbatch = false\n\
         [[route]]\nname = \"api\"\nwhen = {{ lane = \"bulk\" }}\nsend = [\"api\"]\n{ROUTE}",
        api.url()
    );
    let config =
        story::relay_config(&env.amqp_url(), &env.redis_url(), env.aiosmtpd().port(), &format!("{relay}{more}"))
            .replace("level = \"debug\"", "level = \"trace\"");
    let collector = FakeProvider::start(|_| Reaction::Answer(503, "", String::new())).unwrap();
    let worker = consuming(
        Postrider::command(["worker"])
            .config(config)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=c0llector")
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "100"),
    );
    let job = |lane| {
        story::job_with(|job| {
            job.lane = lane;
            job.subject = "B0dy and subject".to_owned();
            job.text = Some("B0dy and text.\n".to_owned());
        })
    };
    story::publish(&env.amqp_url(), &[job(Lane::Transactional), job(Lane::Bulk)]).await.unwrap();
    env.aiosmtpd().wait_for(1, SOON).unwrap();
    deadline::wait_for("the call, and one to the collector", SOON, || {
        (api.taken() == 1 && !collector.calls().is_empty()).then_some(())
    })
    .unwrap();
    let said = worker.stderr();
    assert!(said.contains("\"level\":\"TRACE\"") || said.contains("\"level\":\"DEBUG\""), "{said}");
    // Addresses are looked for when it ends.
    for secret in [PASSWORD, "SG.k3y", "c0llector", "B0dy"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

/// Families and labels of a Prometheus page.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let names = labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        found.entry(base.to_owned()).or_default().extend(names.filter(|label| label != "le"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prometheus_page_is_sound_and_names_what_the_deploy_folder_names() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let port = ports::free().unwrap();
    let admin = format!("[admin]\nlisten = \"127.0.0.1:{port}\"\n");
    let groups = "[[throttle]]\nname = \"customers\"\ndomains = [\"customer.example\"]\nrate = \"1000/s\"\n";
    let worker = story::worker(&env, &format!("{admin}{groups}")).unwrap();
    let bad = story::job_with(|job| {
        job.template =
            Some(postrider_schemas::wire::TemplateV1 { text: Some("{{ missing }}".to_owned()), ..Default::default() });
        job.text = None;
    });
    let later = story::job_with(|job| {
        job.send_at = Some(jiff::Timestamp::now() + Duration::from_secs(600));
    });
    let good = story::job(Lane::Bulk, "ada@customer.example");
    story::publish(&env.amqp_url(), &[good.clone(), bad, later, good]).await.unwrap();
    let endpoint = Endpoint { address: format!("127.0.0.1:{port}"), credentials: String::new() };
    let page = deadline::wait_for("counts on the page", SOON, || {
        let page = endpoint.expect("GET", "/metrics", "").ok()?;
        let wanted = [
            "postrider_outcomes_total{class=\"none\",group=\"customers\",lane=\"bulk\",outcome=\"accepted\",transport=\"relay\"} 1",
            "postrider_dead_total{lane=\"transactional\",reason=\"cannot-be-sent\"} 1",
            "postrider_parked_total{lane=\"transactional\",reason=\"send_at\"} 1",
            "postrider_duplicates_suppressed_total{lane=\"bulk\",reason=\"already_sent\"} 1",
            "postrider_rest_depth{queue=\"dead\"} 1",
            "postrider_circuit_state{state=\"closed\",transport=\"relay\"} 1",
            "postrider_store_degraded 0",
            "postrider_broker_blocked{connection=\"publish\"} 0",
            "postrider_pool_connections_limit{transport=\"relay\"} 8",
        ];
        wanted.iter().all(|line| page.lines().any(|one| one == *line)).then_some(page)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", endpoint.expect("GET", "/metrics", "").unwrap_or_default()));
    drop(worker);
    let known: BTreeMap<String, BTreeSet<String>> = INSTRUMENTS
        .iter()
        .map(|one| {
            let unit = match one.unit {
                "s" => "_seconds",
                "1" => "_ratio",
                "By" => "_bytes",
                _ => "",
            };
            let total = if one.kind == registry::InstrumentKind::Counter { "_total" } else { "" };
            let labels = one.labels.iter().map(|label| (*label).to_owned()).collect();
            (format!("{}{unit}{total}", one.name.replace('.', "_")), labels)
        })
        .collect();
    for (name, labels) in families(&page) {
        assert_eq!(known.get(&name), Some(&labels), "{name}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} explains itself");
    }
    match find("promtool".as_ref()) {
        Err(_) => say_skipped("promtool check metrics", "promtool is not installed"),
        Ok(promtool) => {
            let folder = postrider_tests::folder::Folder::new("page").unwrap();
            let file = folder.write("page", &page).unwrap();
            let command = format!("{} check metrics < {}", promtool.display(), file.display());
            process::run("sh", ["-c", command.as_str()], &[], SOON).unwrap();
        }
    }
}
