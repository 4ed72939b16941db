//! Limits hold over all workers: what real workers send, by the time stamps of the sink. Short versions run always; `POSTRIDER_TEST_LONG=1` runs
//! the long ones, whose bounds are those of a machine that does little else.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::time::Duration;

use postrider_schemas::{Job, Lane, wire};
use postrider_tests::{
    deadline,
    dnsmasq::Dnsmasq,
    pacing_relay::PacingRelay,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    world::{Parts, Server, World},
};

fn is_long() -> bool {
    std::env::var_os("POSTRIDER_TEST_LONG").is_some()
}

/// A group per name: its domain is `NAME.example`.
fn throttle(name: &str, rate: &str) -> String {
    format!("[[throttle]]\nname = \"{name}\"\ndomains = [\"{name}.example\"]\nrate = \"{rate}\"\n")
}

fn jobs(lane: Lane, domain: &str, count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(lane, &format!("customer-{n}@{domain}.example"))).collect()
}

/// Times of arrival of a domain's mail.
fn times(sink: &SmtpSink, domain: &str) -> Vec<f64> {
    let end = format!("@{domain}.example");
    sink.arrivals().unwrap().into_iter().filter(|(_, to)| to.ends_with(&end)).map(|(at, _)| at).collect()
}

/// The most that arrived in any window of so many seconds.
fn busiest(times: &[f64], seconds: f64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (n, at) in times.iter().enumerate() {
        while times[first] + seconds <= *at {
            first += 1;
        }
        most = most.max(n + 1 - first);
    }
    most
}

/// What came in so many seconds after the first second, a second.
fn pace(times: &[f64], seconds: f64) -> f64 {
    let start = times.first().copied().unwrap_or_default() + 1.0;
    times.iter().filter(|at| **at >= start && **at < start + seconds).count() as f64 / seconds
}

fn parks(workers: &[Postrider]) -> usize {
    workers.iter().map(|worker| worker.stderr().matches(" waits for group:").count()).sum()
}

/// Workers at one queue and store, two groups of different rates with more to do than they may.
async fn accuracy(queue: &str, store: &str, sink: &SmtpSink, workers: usize, fast: f64, seconds: f64) {
    let limits = format!("{}{}", throttle("fast", &format!("{fast}/s")), throttle("slow", "5/s"));
    let config = story::config(queue, store, sink.port(), &format!("{limits}{ROUTE}"));
    let mut workers: Vec<Postrider> = (0..workers).map(|_| story::start_any(&config).unwrap()).collect();
    let lanes = jobs(Lane::Bulk, "fast", (fast * seconds * 1.3) as usize);
    let mut all = jobs(Lane::Bulk, "slow", (5.0 * seconds * 1.3) as usize);
    all.extend(lanes);
    story::publish(queue, &all).await.unwrap();
    let end = Duration::from_secs_f64(seconds * 1.2 + 30.0);
    deadline::wait_for("enough time at the sink", end, || {
        let slow = times(sink, "slow");
        (slow.last()? - slow.first()? > seconds + 2.0).then_some(())
    })
    .unwrap();
    for worker in &mut workers {
        worker.terminate().unwrap();
    }
    let (tight, loose) = if is_long() { (0.98, 1.01) } else { (0.5, 1.05) };
    for (group, rate) in [("fast", fast), ("slow", 5.0)] {
        let times = times(sink, group);
        let (pace, most) = (pace(&times, seconds), busiest(&times, 10.0));
        println!("{group} at {rate}/s: {:.1} % used, busiest 10 s {most}, {} in all", pace / rate * 100.0, times.len());
        assert!(pace >= rate * tight, "{group}: {pace}");
        assert!(most as f64 <= rate * 10.0 * loose + 2.0, "{group}: {most} in 10 s");
    }
    for worker in workers {
        worker.finish(SOON).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_together_use_a_limit_and_do_not_pass_it() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    let (workers, fast, seconds) = if is_long() { (4, 200.0, 60.0) } else { (2, 60.0, 12.0) };
    accuracy(&world.amqp_url(), &world.redis_url(), world.sink(), workers, fast, seconds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_workers_together_use_a_limit_and_do_not_pass_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let (workers, fast, seconds) = if is_long() { (4, 200.0, 60.0) } else { (2, 40.0, 12.0) };
    accuracy(&file, &file, &sink, workers, fast, seconds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blast_to_a_slow_group_delays_nobody_else_and_is_parked_once() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    let worker = story::worker(&world, &throttle("slow", "20/s")).unwrap();
    let (blast, others) = if is_long() { (20_000, 2_000) } else { (400, 200) };
    story::publish(&world.amqp_url(), &jobs(Lane::Bulk, "slow", blast)).await.unwrap();
    story::publish(&world.amqp_url(), &jobs(Lane::Bulk, "other", others)).await.unwrap();
    let mut urgent = Vec::new();
    for n in 0..6 {
        // To both: the one passes the blast in its own group, too.
        for domain in ["slow", "other"] {
            let job = story::job(Lane::Transactional, &format!("code-{n}@{domain}.example"));
            let since = std::time::Instant::now();
            story::publish(&world.amqp_url(), &[job]).await.unwrap();
            let there = || {
                let all = world.sink().arrivals().unwrap();
                all.iter().any(|(_, to)| *to == format!("code-{n}@{domain}.example")).then_some(())
            };
            deadline::wait_for("a transactional message", SOON, there).unwrap();
            urgent.push(since.elapsed().as_secs_f64());
        }
    }
    deadline::wait_for("the others", SOON, || (times(world.sink(), "other").len() >= others + 6).then_some(()))
        .unwrap();
    let slow_by_then = times(world.sink(), "slow").len();
    urgent.sort_by(f64::total_cmp);
    println!("others done while {slow_by_then} of {blast} were; transactional waits {urgent:.3?}");
    assert!(slow_by_then < blast, "the others waited for the blast");
    assert!(urgent[urgent.len() / 2] < 1.5, "{urgent:?}");
    let limit = Duration::from_secs_f64(blast as f64 / 20.0 * 1.5 + 30.0);
    deadline::wait_for("the blast", limit, || (times(world.sink(), "slow").len() >= blast + 6).then_some(())).unwrap();
    let slow = times(world.sink(), "slow");
    let per_job = parks(std::slice::from_ref(&worker)) as f64 / blast as f64;
    println!(
        "{per_job:.3} parks a job, busiest 10 s {}, took {:.1} s",
        busiest(&slow, 10.0),
        slow.last().unwrap() - slow[0]
    );
    assert!(per_job <= if is_long() { 1.1 } else { 1.5 }, "{per_job}");
    assert!(busiest(&slow, 10.0) <= 212, "{}", busiest(&slow, 10.0));
    drop(worker);
    let stored = world.sink().messages().unwrap();
    assert_eq!(stored.len(), blast + others + 12, "nothing lost, nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_is_served_beside_a_large_one() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    let worker = story::worker(&world, &throttle("slow", "10/s")).unwrap();
    let (large, small) = if is_long() { (10_000, 100) } else { (400, 20) };
    let of = |tenant: &'static str, count: usize| -> Vec<Job> {
        (0..count)
            .map(|n| {
                story::job_with(|job| {
                    job.lane = Lane::Bulk;
                    job.tenant = Some(tenant.to_owned());
                    job.to = vec![format!("{tenant}-{n}@slow.example").as_str().into()];
                })
            })
            .collect()
    };
    story::publish(&world.amqp_url(), &of("large", large)).await.unwrap();
    let begun = || (!times(world.sink(), "slow").is_empty()).then_some(());
    deadline::wait_for("the first message", SOON, begun).unwrap();
    let since = std::time::Instant::now();
    story::publish(&world.amqp_url(), &of("small", small)).await.unwrap();
    let ideal = small as f64 / 5.0;
    let count = |tenant: &str| {
        let all = world.sink().arrivals().unwrap();
        all.iter().filter(|(_, to)| to.starts_with(tenant)).count()
    };
    let limit = Duration::from_secs_f64(ideal * 3.0 + 30.0);
    deadline::wait_for("the small tenant's mail", limit, || (count("small-") == small).then_some(())).unwrap();
    let took = since.elapsed().as_secs_f64();
    println!("{took:.1} s, ideal {ideal:.1}; the large tenant had {} of {large}", count("large-"));
    assert!(took <= ideal * 3.0, "{took}");
    assert!(count("large-") < large);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_wants_less_gets_less_and_more_again_later() {
    let relay = PacingRelay::start(10).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = "host = \"127.0.0.1\"\ntls = \"none\"\nrate = \"40/s\"\n\
                [[reaction]]\nname = \"patience\"\nmatch = { codes = [\"421\"] }\npause = \"1s\"\ncut = 0.5\nrecover = \"2m\"\n";
    // The pace is recovered within two minutes of a whole one: a third of the way to ten a second takes half a minute.
    let config = story::relay_config(&file, &file, relay.port(), &format!("{more}{ROUTE}"));
    let worker = story::start_any(&config).unwrap();
    let seconds = if is_long() { 120.0 } else { 36.0 };
    story::publish(&file, &jobs(Lane::Bulk, "any", (seconds * 20.0) as usize)).await.unwrap();
    let start = std::time::Instant::now();
    deadline::wait_for("the time", Duration::from_secs(200), || {
        (start.elapsed().as_secs_f64() > seconds).then_some(())
    })
    .unwrap();
    let after = |list: &[std::time::Instant], from: f64, to: f64| {
        let within = |at: &&std::time::Instant| (from..to).contains(&at.duration_since(start).as_secs_f64());
        list.iter().filter(within).count()
    };
    let from = if is_long() { 60.0 } else { 12.0 };
    let (taken, refused) = (after(&relay.taken(), from, seconds), after(&relay.refused(), from, seconds));
    let share = refused as f64 / (taken + refused) as f64;
    println!("after {from} s: {taken} taken, {refused} refused ({:.1} %)", share * 100.0);
    assert!(taken as f64 / (seconds - from) <= 10.5 && taken as f64 / (seconds - from) >= 3.0, "{taken}");
    assert!(share < if is_long() { 0.05 } else { 0.15 }, "{share}");
    let first = after(&relay.refused(), 0.0, from);
    println!("{first} refused before");
    relay.allow(1000);
    let before = relay.taken().len();
    let lifted = std::time::Instant::now();
    // Jobs that were put away come back at their slots; fresh ones find what has recovered.
    story::publish(&file, &jobs(Lane::Transactional, "fresh", 400)).await.unwrap();
    let recovered = || {
        let recent = relay.taken().iter().filter(|at| at.elapsed() < Duration::from_secs(2)).count();
        (recent >= 22).then_some(())
    };
    deadline::wait_for("a faster pace", Duration::from_secs(90), recovered).unwrap();
    println!("{} more in {:.1} s", relay.taken().len() - before, lifted.elapsed().as_secs_f64());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_and_a_restart_of_redis_let_nobody_past_the_limit() {
    let parts = Parts { redis: Server::Own, ..Parts::usual() };
    let Some(mut world) = World::start_or_skip("limits under failures", &parts).unwrap() else { return };
    story::declare(&world).unwrap();
    story::remember(&world).unwrap();
    let limits = throttle("slow", "20/s");
    let mut first = story::worker(&world, &limits).unwrap();
    let second = story::worker(&world, &limits).unwrap();
    let count = if is_long() { 1200 } else { 300 };
    story::publish(&world.amqp_url(), &jobs(Lane::Bulk, "slow", count)).await.unwrap();
    let wait_for = |world: &World, part: usize| {
        let enough = || (times(world.sink(), "slow").len() >= count * part / 10).then_some(());
        deadline::wait_for("a part of the mail", Duration::from_secs(120), enough).unwrap();
    };
    wait_for(&world, 2);
    first.kill9().unwrap();
    first.start_again().unwrap();
    wait_for(&world, 4);
    world.redis().restart().unwrap();
    let held = |world: &World| {
        let config = story::config(&world.amqp_url(), &world.redis_url(), world.sink().port(), ROUTE);
        story::rest("hold", &config).map_or(0, |rows| rows.len())
    };
    deadline::wait_for("everything sent or held", Duration::from_secs(180), || {
        let sent = times(world.sink(), "slow").len();
        (sent >= count || sent + held(&world) >= count).then_some(())
    })
    .unwrap();
    let slow = times(world.sink(), "slow");
    println!(
        "{} sent, {} held, busiest 1 s {}, 10 s {}",
        slow.len(),
        held(&world),
        busiest(&slow, 1.0),
        busiest(&slow, 10.0)
    );
    assert!(busiest(&slow, 10.0) <= 220, "more than a second's worth above the limit");
    drop((first, second));
    let stored = world.sink().messages().unwrap();
    let once: std::collections::HashSet<String> = stored.iter().map(|one| one.recipients()[0].to_owned()).collect();
    assert_eq!(once.len(), stored.len(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_transactional_mail_keeps_to_the_limit() {
    let parts = Parts { redis: Server::Own, ..Parts::usual() };
    let Some(mut world) = World::start_or_skip("limits without Redis", &parts).unwrap() else { return };
    story::declare(&world).unwrap();
    let worker = story::worker(&world, &throttle("slow", "5/s")).unwrap();
    let first = jobs(Lane::Transactional, "slow", 1);
    story::publish(&world.amqp_url(), &first).await.unwrap();
    world.sink().wait_for(1, SOON).unwrap();
    world.redis().kill9().unwrap();
    let codes: Vec<Job> = (0..20).map(|n| story::job(Lane::Transactional, &format!("code-{n}@slow.example"))).collect();
    story::publish(&world.amqp_url(), &codes).await.unwrap();
    let there = || (times(world.sink(), "slow").len() >= 12).then_some(());
    deadline::wait_for("mail without Redis", SOON, there).unwrap();
    let times_now = times(world.sink(), "slow");
    println!("without Redis: busiest 1 s {}", busiest(&times_now[1..], 1.0));
    assert!(busiest(&times_now[1..], 1.0) <= 8, "{times_now:?}");
    assert!(worker.stderr().contains("goes on with a share of the limits"));
    world.redis().restart().unwrap();
    world.sink().wait_for(21, Duration::from_secs(90)).unwrap();
    drop(worker);
    assert_eq!(world.sink().count().unwrap(), 21);
}

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

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_pauses_sets_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), &format!("{}{ROUTE}", throttle("slow", "5/s")));
    let limits = |arguments: &[&str]| {
        let arguments = ["limits"].into_iter().chain(arguments.iter().copied());
        Postrider::command(arguments).config(config.clone()).run(SOON).unwrap()
    };
    let row = |scope: &str| -> serde_json::Value {
        let done = limits(&["ls", scope, "--format", "json"]);
        assert!(done.status.success(), "{}", done.stderr);
        done.stdout.lines().next().map_or(serde_json::Value::Null, |line| serde_json::from_str(line).unwrap())
    };
    let scope = "group:relay:slow";
    let done = limits(&["pause", scope, "--for", "1h", "--reason", "maintenance at theirs"]);
    assert!(done.status.success(), "{}", done.stderr);
    let _worker = story::start_any(&config).unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "slow", 10)).await.unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "other", 1)).await.unwrap();
    sink.wait_for(1, SOON).unwrap();
    let waiting = || (row(scope)["tenants_waiting"] == 1).then_some(());
    deadline::wait_for("jobs that wait for the end of the pause", SOON, waiting).unwrap();
    let paused = row(scope);
    assert_eq!((&paused["why"], &paused["configured"][0]), (&"maintenance at theirs".into(), &"5/s".into()));
    assert!(paused["paused_for_s"].as_f64().unwrap() > 3000.0, "{paused}");
    let shown = limits(&["ls", "group:"]).stdout;
    assert!(shown.contains("group:relay:slow  5/s, paused for") && shown.contains("maintenance"), "{shown}");

    let job = wire::encode(&story::job(Lane::Bulk, "ada@slow.example"));
    let explain = |format: &str| {
        let asked = Postrider::command(["explain", "-", "--now", "--format", format]).config(config.clone());
        let done = asked.input(job.to_vec()).run(SOON).unwrap();
        assert!(done.status.success(), "{}", done.stderr);
        done.stdout
    };
    let told: serde_json::Value = serde_json::from_str(&explain("json")).unwrap();
    let applies = told["limits"].as_array().unwrap();
    let scopes: Vec<&str> = applies.iter().map(|one| one["scope"].as_str().unwrap()).collect();
    assert_eq!(scopes, ["transport:relay", scope, "tenant:default"]);
    assert!(applies[1]["now"]["wait_s"].as_f64().unwrap() > 3000.0, "{told}");
    assert!(explain("text").contains("because of maintenance at theirs"), "{}", explain("text"));

    assert!(limits(&["resume", scope]).status.success());
    assert!(limits(&["set", scope, "50/s", "--for", "10m", "--reason", "they allow more"]).status.success());
    let set = row(scope);
    assert!((set["per_second"].as_f64().unwrap() - 50.0).abs() < 0.1 && set["paused_for_s"].is_null(), "{set}");
    // What was put away stays away until its slot; what is fresh goes at the new pace at once.
    story::publish(&file, &jobs(Lane::Transactional, "slow", 40)).await.unwrap();
    sink.wait_for(41, SOON).unwrap();
    let fresh = times(&sink, "slow");
    let took = fresh.last().unwrap() - fresh[0];
    println!("40 at 50/s in {took:.2} s");
    assert!(took < 6.0, "{took}");
    let wrong = limits(&["pause", "group:nobody:slow", "--reason", "x"]);
    assert!(!wrong.status.success() && wrong.stderr.contains("no scope of this configuration"), "{}", wrong.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postfix_that_counts_messages_is_left_alone_when_it_says_so() {
    let parts = Parts { postfix: true, ..Parts::usual() };
    let world = World::start(&parts).unwrap();
    story::declare(&world).unwrap();
    let relay = format!(
        "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\n",
        world.postfix().ca_file().display(),
        postrider_tests::postfix::USER,
        postrider_tests::postfix::PASSWORD
    );
    let config = story::relay_config(
        &world.amqp_url(),
        &world.redis_url(),
        world.postfix().limited,
        &format!("{relay}connections = 1\n{ROUTE}").replace("connections = 1\n", ""),
    )
    .replace("connections = 8", "connections = 1");
    let mut worker = story::start(config.clone()).unwrap();
    let batch = |n: usize| story::job(Lane::Bulk, &format!("ok-{n}@dest.test"));
    story::publish(&world.amqp_url(), &(0..40).map(batch).collect::<Vec<_>>()).await.unwrap();
    worker.wait_for_output("asks for patience", SOON).unwrap();
    let done = Postrider::command(["limits", "ls", "transport:", "--format", "json"]).config(config).run(SOON).unwrap();
    let row: serde_json::Value = serde_json::from_str(done.stdout.lines().next().unwrap()).unwrap();
    println!("{row}");
    assert!(row["why"].as_str().unwrap().starts_with("rate: "), "{row}");
    let all_away = || {
        let log = worker.stderr();
        let (refused, waiting) =
            (log.matches("was refused").count(), log.matches(" waits for transport:relay").count());
        (refused + waiting >= 37).then_some((refused, waiting))
    };
    let counts = deadline::wait_for("all of them refused or put away", SOON, all_away);
    let (refused, waiting) =
        counts.unwrap_or_else(|error| panic!("{error:#}: {}", worker.stderr().replace('@', " at ")));
    println!("{refused} refused by Postfix, {waiting} put away without asking it");
    assert!(refused < 20, "{refused}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_connections_to_a_relay_and_inherit_those_of_the_dead() {
    let relay = PacingRelay::start(100_000).unwrap();
    relay.answer_after(Duration::from_millis(100));
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = format!("host = \"127.0.0.1\"\ntls = \"none\"\nconnections_total = 6\n{ROUTE}");
    let config = story::relay_config(&file, &file, relay.port(), &more);
    let (mut first, mut second) = (story::start_any(&config).unwrap(), story::start_any(&config).unwrap());
    let load = |n: usize| jobs(Lane::Bulk, "any", n);
    story::publish(&file, &load(if is_long() { 2000 } else { 600 })).await.unwrap();
    let part = |worker: &Postrider, part: usize| {
        let text = format!("\"part\":{part},");
        let log = worker.stderr();
        log.lines()
            .rev()
            .find(|line| line.contains("Connections to the relay"))
            .is_some_and(|line| line.contains(&text))
    };
    let equal = || (part(&first, 3) && part(&second, 3)).then_some(());
    deadline::wait_for("equal parts", SOON, equal).unwrap();
    second.kill9().unwrap();
    deadline::wait_for("the part of the dead", SOON, || part(&first, 6).then_some(())).unwrap();
    let (open, most) = relay.connections();
    println!("{open} open, at most {most} at once, {} taken", relay.taken().len());
    assert!(most <= 6, "{most}");
    first.terminate().unwrap();
    first.wait(SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_whether_a_limit_means_waiting_another_transport_or_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let (first, second) = (SmtpSink::start(Options::default()).unwrap(), SmtpSink::start(Options::default()).unwrap());
    let spare =
        format!("[transport.spare]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\n", second.port());
    let route = |tenant: &str, more: &str| {
        format!(
            "[[route]]\nname = \"{tenant}\"\nwhen = {{ tenants = [\"{tenant}\"] }}\nsend = [\"relay\", \"spare\"]\n{more}\n"
        )
    };
    let routes = format!(
        "{}{}[[route]]\nname = \"all\"\nsend = [\"relay\"]\n",
        route("next", "on_limit = \"next\""),
        route("expire", "on_limit = \"expire\"")
    );
    let config = story::config(&file, &file, first.port(), &format!("rate = \"2/s\"\n{spare}{routes}"));
    let worker = story::start_any(&config).unwrap();
    let of = |tenant: &'static str| -> Vec<Job> {
        let one = |n: usize| {
            story::job_with(|job| {
                job.tenant = Some(tenant.to_owned());
                job.to = vec![format!("{tenant}-{n}@any.example").as_str().into()];
            })
        };
        (0..20).map(one).collect()
    };
    story::publish(&file, &of("next")).await.unwrap();
    deadline::wait_for("all by one or the other", SOON, || {
        (first.count().unwrap() + second.count().unwrap() == 20).then_some(())
    })
    .unwrap();
    println!("next: {} by the first, {} by the second", first.count().unwrap(), second.count().unwrap());
    assert!(second.count().unwrap() >= 10, "the limit led to the second");
    let before = first.count().unwrap() + second.count().unwrap();
    story::publish(&file, &of("expire")).await.unwrap();
    let nothing_left = || {
        let done = Postrider::command(["limits", "ls", "transport:relay", "--format", "json"]).config(config.clone());
        let line = done.run(SOON).unwrap().stdout;
        let row: serde_json::Value = serde_json::from_str(line.lines().next()?).unwrap();
        let db = rusqlite::Connection::open(folder.path().join("queue.db")).unwrap();
        let left: i64 = db.query_row("SELECT count(*) FROM message", [], |row| row.get(0)).unwrap();
        (left == 0 && row["tenants_waiting"] == 0).then_some(())
    };
    deadline::wait_for("the end of all", SOON, nothing_left).unwrap();
    let sent = first.count().unwrap() + second.count().unwrap() - before;
    println!("expire: {sent} of 20 sent");
    assert!((1..20).contains(&sent), "the others expired: {sent}");
    drop(worker);
}
