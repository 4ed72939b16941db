use std::collections::BTreeSet;

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use postrider_schemas::{JobLimits, JobV1};
use prometheus::TextEncoder;

use super::*;
use crate::{
    policy::outcome::{Answer, Refusal},
    telemetry::registry::{INSTRUMENTS, Instrument, InstrumentKind},
};

fn job(domain: usize, tenant: usize) -> Job {
    let job = JobV1 {
        from: "orders@shop.example".into(),
        to: vec![format!("someone@d{domain}.example").into()],
        tenant: Some(format!("tenant-{tenant}")),
        subject: "Hello".to_owned(),
        text: Some("Hello.".to_owned()),
        lane: if domain.is_multiple_of(2) { Lane::Bulk } else { Lane::Transactional },
        ..JobV1::default()
    };
    job.parse(&JobLimits::DEFAULT).unwrap()
}

fn refused(class: Class, stage: Stage) -> Outcome {
    let refusal = Refusal { class, answer: Answer::local(stage, "no"), retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

/// The name by which Prometheus knows an instrument.
fn prometheus_name(one: &Instrument) -> String {
    let mut name = one.name.replace('.', "_");
    match one.unit {
        "s" => name.push_str("_seconds"),
        "1" => name.push_str("_ratio"),
        _ => {}
    }
    if one.kind == InstrumentKind::Counter {
        name.push_str("_total");
    }
    name
}

#[test]
fn a_hundred_thousand_domains_and_ten_thousand_tenants_make_no_further_series() {
    let registry = prometheus::Registry::new();
    let page = opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_target_info();
    let provider = SdkMeterProvider::builder().with_reader(page.build().unwrap()).build();
    let metrics = Metrics::new(&provider.meter("test"));
    metrics.learn(["relay", "backup"], ["first", "second"]);
    let outcomes = [
        Outcome::LostClaim,
        Outcome::Unknown(Answer::local(Stage::Body, "gone")),
        refused(Class::Config, Stage::Auth),
        refused(Class::Throttled, Stage::RcptTo),
    ];
    let mut series = BTreeSet::new();
    for n in 0..100_000 {
        let (job, outcome) = (job(n, n % 10_000), &outcomes[n % outcomes.len()]);
        // Names that no configuration holds, as a mistake would bring them here.
        let transport = if n.is_multiple_of(7) { format!("d{n}.example") } else { "relay".to_owned() };
        // A domain without a group of its own stands for itself in limits; not here.
        let group = match n {
            1 => "first".to_owned(),
            2 => "second".to_owned(),
            n => format!("d{n}.example"),
        };
        metrics.begun(&job, &transport, &group);
        metrics.ended(&job, &transport, &group, Some(outcome), Duration::from_millis(n as u64));
        if n == 1000 || n == 99_999 {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
            let now: BTreeSet<String> = lines.map(|(name, _)| name.to_owned()).collect();
            assert!(series.is_empty() || now == series, "{:?}", now.difference(&series).collect::<Vec<_>>());
            series = now;
        }
    }
    assert!(series.len() < 1000, "{}", series.len());
    let text = series.iter().cloned().collect::<Vec<_>>().join("\n");
    assert!(!text.contains(".example") && !text.contains("tenant"), "{text}");
    for group in ["first", "second", "other"] {
        assert!(text.contains(&format!("group=\"{group}\"")), "{group}");
    }
    let known: Vec<String> = INSTRUMENTS.iter().map(prometheus_name).collect();
    for line in &series {
        let name = line.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(known.iter().any(|one| one == base), "{line}");
    }
}

#[test]
fn an_attempt_that_is_given_up_without_an_outcome_is_counted_as_ended_too() {
    let registry = prometheus::Registry::new();
    let page = opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_target_info();
    let provider = SdkMeterProvider::builder().with_reader(page.build().unwrap()).build();
    let metrics = Metrics::new(&provider.meter("test"));
    metrics.learn(["relay"], []);
    let job = job(1, 1);
    let begin = || CountedAttempt::begin(Some(&metrics), &job, "relay", "", Instant::now());
    begin().ended(&Outcome::LostClaim);
    drop((begin(), begin()));
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let count = |begin: &str, word: &str| {
        let line = text.lines().find(|line| line.starts_with(begin) && line.contains(word)).unwrap();
        line.rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(count("postrider_attempts_total", "relay"), "3");
    assert_eq!(count("postrider_outcomes_total", "outcome=\"lost_claim\""), "1");
    assert_eq!(count("postrider_outcomes_total", "outcome=\"interrupted\""), "2");
}

#[test]
fn names_that_a_configuration_brings_are_bounded_too() {
    let names = KnownNames::new("none");
    let many: Vec<String> = (0..1000).map(|n| format!("transport-{n}")).collect();
    names.learn(many.iter().map(String::as_str));
    names.learn(["one-more"]);
    let labels: BTreeSet<String> = many.iter().map(|name| names.label(name).to_string()).collect();
    assert_eq!(labels.len(), label_values::NAMES_MAX);
    assert_eq!(names.label("one-more").as_str(), "none");
}
