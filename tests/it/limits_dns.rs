//! Groups by mail exchangers and recipients who cannot be reached, against a real DNS server.

use std::time::Duration;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    dnsmasq::Dnsmasq,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
};

use crate::limits::{jobs, times};

/// A worker that asks this DNS server, with these rules.
fn dns_config(file: &str, sink: &SmtpSink, dns: &Dnsmasq, more: &str) -> String {
    let dns =
        format!("[dns]\ngroups = true\ncheck = true\nservers = [\"127.0.0.1:{}\"]\npatience = \"2s\"\n", dns.port());
    story::config(file, file, sink.port(), &format!("{dns}{more}{ROUTE}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_with_the_same_exchanger_share_a_limit_and_a_dead_dns_stops_no_mail() {
    let mut dns = Dnsmasq::start(&[
        "--mx-host=one.example,mx1.provider.test,10",
        "--mx-host=one.example,backup.elsewhere.test,20",
        "--mx-host=two.example,mx2.provider.test,10",
        "--mx-host=three.example,mail.three.example,10",
    ])
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let limits = "[[throttle]]\nname = \"provider\"\nmx = [\".provider.test\"]\nrate = \"5/s\"\n";
    let config = dns_config(&file, &sink, &dns, limits);
    let worker = story::start_any(&config).unwrap();
    let mut all = jobs(Lane::Bulk, "one", 25);
    all.extend(jobs(Lane::Bulk, "two", 25));
    all.extend(jobs(Lane::Bulk, "three", 25));
    story::publish(&file, &all).await.unwrap();
    sink.wait_for(75, Duration::from_secs(90)).unwrap();
    let mut shared = times(&sink, "one");
    shared.extend(times(&sink, "two"));
    shared.sort_by(f64::total_cmp);
    let took = |times: &[f64]| times.last().unwrap() - times[0];
    println!(
        "shared limit: 50 in {:.1} s, the third domain 25 in {:.1} s",
        took(&shared),
        took(&times(&sink, "three"))
    );
    assert!(took(&shared) >= 9.0, "50 at 5/s take ten seconds");
    assert!(took(&times(&sink, "three")) < took(&shared) / 2.0, "the third domain has no limit");
    dns.kill9().unwrap();
    // Domains that nobody has asked about yet.
    let later: Vec<Job> =
        (0..20).map(|n| story::job(Lane::ALL[n % 2], &format!("customer@unknown-{n}.example"))).collect();
    let since = std::time::Instant::now();
    story::publish(&file, &later).await.unwrap();
    sink.wait_for(95, SOON).unwrap();
    println!("without DNS: 20 in {:.1} s", since.elapsed().as_secs_f64());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_whose_domain_does_not_exist_or_takes_no_mail_are_refused_before_anything_is_sent() {
    let dns = Dnsmasq::start(&[
        "--mx-host=good.example,mx.good.example,10",
        "--mx-host=closed.example,.,0",
        "--host-record=plain.example,127.0.0.1",
    ])
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = dns_config(&file, &sink, &dns, "");
    let mut worker = story::start_any(&config).unwrap();
    let to = |list: &[&str]| story::job_with(|job| job.to = list.iter().map(|one| (*one).into()).collect());
    let list = [
        to(&["ada@nowhere.example"]),
        to(&["ada@closed.example"]),
        to(&["ada@good.example", "bob@closed.example"]),
        to(&["ada@plain.example"]),
    ];
    story::publish(&file, &list).await.unwrap();
    sink.wait_for(2, SOON).unwrap();
    worker.wait_for_output("the domain does not exist", SOON).unwrap();
    worker.wait_for_output("takes no mail (null MX)", SOON).unwrap();
    // The refusals are told before the silence; then a DNS that says nothing refuses nobody.
    dns.freeze();
    story::publish(&file, &[to(&["ada@also-nowhere.example"])]).await.unwrap();
    sink.wait_for(3, SOON).unwrap();
    dns.thaw();
    worker.terminate().unwrap();
    worker.wait(SOON).unwrap();
    let arrived = sink.messages().unwrap();
    let mut recipients: Vec<&str> = arrived.iter().flat_map(|one| one.recipients()).collect();
    recipients.sort_unstable();
    assert_eq!(recipients, ["ada@also-nowhere.example", "ada@good.example", "ada@plain.example"]);
}
