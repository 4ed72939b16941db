//! What a job costs before anything is sent: finding its rule, and making a provider's request. Prints figures and asserts nothing.
//!
//! `cargo bench -p postrider-workers --bench route_and_request`
#![expect(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::{fmt::Write as _, hint::black_box};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, examples, wire};
use postrider_workers::{
    config::{SesAccount, SesCredentials, load_text},
    message::outgoing::OutgoingMessage,
    policy::route::Routes,
    providers::{brevo, mailgun, mailjet, postmark, resend, sendgrid, ses, sigv4::Keys, sparkpost, webhook},
};
use secrecy::SecretString;

fn example(name: &str) -> Job {
    let (_, document) = examples::ALL.iter().find(|(other, _)| *other == name).unwrap();
    wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

/// So many rules, of which the last one takes every job: the dearest way through them.
fn rules(count: usize, condition: impl Fn(usize) -> String) -> Routes {
    let mut text = "[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\n".to_owned();
    for n in 1..count {
        let _ = write!(text, "[[route]]\nname = \"r{n}\"\nsend = [\"relay\"]\nwhen = {{ {} }}\n", condition(n));
    }
    text.push_str("[[route]]\nname = \"all\"\nsend = [\"relay\"]\n");
    load_text(&text).unwrap().routes
}

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    let jobs = [("1 recipient", example("newsletter")), ("5 recipients", example("copies"))];
    for count in [1, 10, 50] {
        let kinds = [
            (
                "of jobs",
                rules(count, |n| format!("lane = \"bulk\", tenants = [\"t{n}\"], tags = [\"a{n}\", \"b{n}*\"]")),
            ),
            ("of recipients", rules(count, |n| format!("recipient_domains = [\"d{n}.example\", \".e{n}.example\"]"))),
        ];
        for (kind, routes) in &kinds {
            for (recipients, job) in &jobs {
                group.bench_function(BenchmarkId::new(format!("{count} rules {kind}"), recipients), |bencher| {
                    bencher.iter(|| black_box(routes.route(black_box(job), None)));
                });
            }
        }
    }
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let key = SecretString::from("a key of the usual length, or about that");
    let keys = Keys { access_key_id: "AKIDEXAMPLE".to_owned(), secret_access_key: key.clone(), session_token: None };
    let account = SesAccount {
        region: "eu-central-1".to_owned(),
        credentials: SesCredentials::Static {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: key.clone(),
            session_token: None,
        },
        configuration_set: None,
        tracking_configuration_set: None,
    };
    let now = Timestamp::now();
    for name in ["receipt", "newsletter", "pdf-attachment"] {
        let job = example(name);
        let mut group = criterion.benchmark_group(format!("request for {name}"));
        group.throughput(Throughput::Elements(1));
        // With the message, which renders and composes: that is what a job costs.
        let outgoing = || OutgoingMessage::new(black_box(&job), None, None, now).unwrap();
        group.bench_function("sendgrid", |bencher| {
            bencher.iter(|| sendgrid::request(&key, &outgoing().view()).unwrap());
        });
        group.bench_function("ses", |bencher| {
            bencher.iter(|| ses::request(&account, &keys, "email.example.com", &outgoing().view(), now).unwrap());
        });
        group.bench_function("mailgun", |bencher| {
            bencher.iter(|| mailgun::request(&key, "mg.shop.example", &outgoing().view()).unwrap());
        });
        group.bench_function("sparkpost", |bencher| {
            bencher.iter(|| sparkpost::request(&key, None, true, &outgoing().view()).unwrap());
        });
        group.bench_function("postmark", |bencher| {
            bencher.iter(|| postmark::request(&key, None, &outgoing().view()).unwrap());
        });
        group.bench_function("mailjet", |bencher| {
            bencher.iter(|| mailjet::request(&key, &key, &outgoing().view()).unwrap());
        });
        // Some jobs do not fit these two: what finding that out costs is shown then.
        group.bench_function("resend", |bencher| {
            bencher.iter(|| black_box(resend::request(&key, &outgoing().view()).is_ok()));
        });
        group.bench_function("brevo", |bencher| {
            bencher.iter(|| black_box(brevo::request(&key, &outgoing().view()).is_ok()));
        });
        group.bench_function("webhook", |bencher| {
            bencher.iter(|| webhook::request(&key, &outgoing().view(), now).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, routing, requests);
criterion_main!(benches);
