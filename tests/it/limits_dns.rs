//! Groups by mail exchangers and recipients who cannot be reached, against a real DNS server.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    dnsmasq::Dnsmasq,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

use postrider_workers::store::{self, Store};

use crate::{
    limiter_growth::cost,
    limits::{jobs, times},
};

/// What a worker asks of the DNS server at this port, and for how long it waits.
fn asks(port: u16, patience: &str) -> String {
    format!("[dns]\ngroups = true\ncheck = true\nservers = [\"127.0.0.1:{port}\"]\npatience = \"{patience}\"\n")
}

/// A worker that asks this DNS server, with these rules.
fn dns_config(file: &str, sink: &SmtpSink, dns: &Dnsmasq, more: &str) -> String {
    story::config(file, file, sink.port(), &format!("{}{more}{ROUTE}", asks(dns.port(), "2s")))
}

/// A limit that two domains share, by their exchangers.
const PROVIDER: &str = "[[throttle]]\nname = \"provider\"\nmx = [\".provider.test\"]\n";
const SHARED: [&str; 2] = ["--mx-host=one.example,mx1.provider.test,10", "--mx-host=two.example,mx2.provider.test,10"];

/// A DNS server that hears everything and says nothing.
fn mute() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_many_recipients_waits_for_a_silent_dns_once() {
    let dns = Dnsmasq::start(&[]).unwrap();
    dns.freeze();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let _worker =
        story::start_any(&story::config(&file, &file, sink.port(), &format!("{}{ROUTE}", asks(dns.port(), "3s"))))
            .unwrap();
    let to = |count: usize| (0..count).map(|n| format!("customer@unknown-{n}.example").as_str().into()).collect();
    let begin = Instant::now();
    story::publish(&file, &[story::job_with(|job| job.to = to(20))]).await.unwrap();
    let arrived = sink.wait_for(1, Duration::from_secs(60)).unwrap();
    println!("20 domains at a silent DNS: {:.1} s", begin.elapsed().as_secs_f64());
    assert_eq!(arrived[0].recipients().len(), 20);
    assert!(begin.elapsed() < Duration::from_secs(9), "three patiences: {:?}", begin.elapsed());
    dns.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_whose_own_servers_do_not_answer_leave_others_in_their_groups() {
    let (_mute, port) = mute();
    let junk = format!("--server=/junk.example/127.0.0.1#{port}");
    let dns = Dnsmasq::start(&[SHARED[0], SHARED[1], &junk]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let more = format!("{}{PROVIDER}rate = \"5/s\"\n{ROUTE}", asks(dns.port(), "500ms"));
    let mut worker = story::start_any(&story::config(&file, &file, sink.port(), &more)).unwrap();
    let junk: Vec<Job> =
        (0..8).map(|n| story::job(Lane::Transactional, &format!("customer@d{n}.junk.example"))).collect();
    story::publish(&file, &junk).await.unwrap();
    sink.wait_for(8, SOON).unwrap();
    // By then nothing was said of any of them, and DNS itself was asked.
    worker.wait_for_output("DNS speaks", SOON).unwrap();
    let mut all = jobs(Lane::Bulk, "one", 10);
    all.extend(jobs(Lane::Bulk, "two", 10));
    story::publish(&file, &all).await.unwrap();
    sink.wait_for(28, SOON).unwrap();
    let mut shared = times(&sink, "one");
    shared.extend(times(&sink, "two"));
    shared.sort_by(f64::total_cmp);
    let took = shared.last().unwrap() - shared[0];
    println!("shared limit beside junk: 20 in {took:.1} s");
    assert!(took >= 3.0, "20 at 5/s take four seconds: {took}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_dns_leaves_its_seat_to_others() {
    let (mute, port) = mute();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    // Three job slots; bulk mail may have two of them.
    let more = format!("{}{PROVIDER}domains = [\"listed.example\"]\n{ROUTE}", asks(port, "5s"));
    let config = story::config(&file, &file, sink.port(), &more).replace("check = true", "check = false");
    let config = config.replace("transactional = 32\nbulk = 32", "transactional = 2\nbulk = 1");
    let _worker = story::start_any(&config).unwrap();
    let waiting = [(Lane::Transactional, "unknown-a"), (Lane::Transactional, "unknown-b"), (Lane::Bulk, "unknown-c")];
    let jobs: Vec<Job> =
        waiting.map(|(lane, name)| story::job(lane, &format!("customer@{name}.example"))).into_iter().collect();
    story::publish(&file, &jobs).await.unwrap();
    let mut unheard: Vec<&str> = waiting.map(|(_, name)| name).into_iter().collect();
    let mut packet = [0; 512];
    while !unheard.is_empty() {
        let length = mute.recv(&mut packet).unwrap();
        unheard.retain(|name| !packet[..length].windows(name.len()).any(|part| part == name.as_bytes()));
    }
    story::publish(&file, &[story::job(Lane::Bulk, "customer@listed.example")]).await.unwrap();
    sink.wait_for(4, SOON).unwrap();
    let order: Vec<String> = sink.arrivals().unwrap().into_iter().map(|(_, to)| to).collect();
    assert_eq!(order[0], "customer@listed.example", "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_asked_with_the_claim_where_dns_is_remembered() {
    let dns = Dnsmasq::start(&SHARED).unwrap();
    let parts = EnvSpec { redis: Server::Own, sink: Some(Options::default()), ..EnvSpec::default() };
    let Some(mut env) = TestEnv::start_or_skip("limits with the claim", &parts).unwrap() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = format!("{}{PROVIDER}rate = \"50/s\"\n{ROUTE}", asks(dns.port(), "2s"));
    let config = story::config(&file, &env.redis_url(), env.sink().port(), &more);
    let worker = story::start_any(&config).unwrap();
    let first: Vec<Job> = ["one", "two"].map(|name| jobs(Lane::Transactional, name, 1).remove(0)).into_iter().collect();
    story::publish(&file, &first).await.unwrap();
    env.sink().wait_for(2, SOON).unwrap();
    let (_, before) = cost(env.redis()).unwrap();
    // One after the other, so that none has to wait and ask again.
    for n in 0..40 {
        story::publish(&file, &jobs(Lane::Transactional, ["one", "two"][n % 2], 1)).await.unwrap();
        env.sink().wait_for(n + 3, SOON).unwrap();
    }
    let (_, after) = cost(env.redis()).unwrap();
    drop(worker);
    let store = Store::connect(&env.redis_url(), store::StoreOptions::default()).await.unwrap();
    let overview = store.overview(Some(&["group:relay:provider".to_owned()])).await.unwrap();
    let used = &overview.scopes[0].1.used;
    let each = (after - before) / 40.0;
    println!("{each:.2} calls of scripts a message");
    assert!(used.count + used.before >= 41.5, "both domains count for the provider: {used:?}");
    // Claim and limits, the submission, the end; a question of its own would be a fourth.
    assert!(each < 3.6, "{each}");
}
