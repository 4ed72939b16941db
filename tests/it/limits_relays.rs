//! Relays that want less: what they answer slows the workers down, and a cap on connections holds over all of them.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::time::Duration;

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
    throttling_relay::ThrottlingRelay,
};

use crate::limits::{is_long, jobs};

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_wants_less_gets_less_and_more_again_later() {
    let relay = ThrottlingRelay::start(10).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    // The long version goes by the rules that ship. In the short one a pace is whole again within two minutes: a third of the way to ten a
    // second takes half a minute.
    let quick = "[[shaping_rule]]\nname = \"patience\"\nmatch = { codes = [\"421\"] }\npause = \"1s\"\ncut = 0.5\nrecover = \"2m\"\n";
    let reaction = if is_long() { "" } else { quick };
    let more = format!("host = \"127.0.0.1\"\ntls = \"none\"\nrate = \"40/s\"\n{reaction}");
    let config = story::relay_config(&file, &file, relay.port(), &format!("{more}{ROUTE}"));
    let worker = story::start_any(&config).unwrap();
    let seconds = if is_long() { 360.0 } else { 36.0 };
    story::publish(&file, &jobs(Lane::Bulk, "any", (seconds * 20.0) as usize)).await.unwrap();
    let start = std::time::Instant::now();
    deadline::wait_for("the time", Duration::from_secs(400), || {
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
    // Jobs that were deferred come back at their slots; fresh ones find what has recovered.
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
async fn a_postfix_that_counts_messages_is_left_alone_when_it_says_so() {
    let parts = EnvSpec { postfix: true, ..EnvSpec::usual() };
    let env = TestEnv::start(&parts).unwrap();
    story::declare(&env).unwrap();
    let relay = format!(
        "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\n",
        env.postfix().ca_file().display(),
        postrider_tests::postfix::USER,
        postrider_tests::postfix::PASSWORD
    );
    let config =
        story::relay_config(&env.amqp_url(), &env.redis_url(), env.postfix().limited, &format!("{relay}{ROUTE}"))
            .replace("connections = 8", "connections = 1");
    let mut worker = story::start(config.clone()).unwrap();
    let batch = |n: usize| story::job(Lane::Bulk, &format!("ok-{n}@dest.test"));
    story::publish(&env.amqp_url(), &(0..40).map(batch).collect::<Vec<_>>()).await.unwrap();
    worker.wait_for_output("asks for patience", SOON).unwrap();
    let done = Postrider::command(["limits", "ls", "transport:", "--format", "json"]).config(config).run(SOON).unwrap();
    let row: serde_json::Value = serde_json::from_str(done.stdout.lines().next().unwrap()).unwrap();
    println!("{row}");
    assert!(row["why"].as_str().unwrap().starts_with("rate: "), "{row}");
    let all_away = || {
        let log = worker.stderr();
        let (refused, waiting) =
            (log.matches("was refused").count(), log.matches(" limited by transport:relay").count());
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
    let relay = ThrottlingRelay::start(100_000).unwrap();
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
async fn workers_that_are_more_than_the_connections_take_turns() {
    let relay = ThrottlingRelay::start(100_000).unwrap();
    relay.answer_after(Duration::from_millis(100));
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = format!("host = \"127.0.0.1\"\ntls = \"none\"\nconnections_total = 1\n{ROUTE}");
    let config = story::relay_config(&file, &file, relay.port(), &more);
    let workers = [(); 2].map(|()| story::start_any(&config).unwrap());
    // Twenty seconds' worth for one connection: both workers have as many in hand as may wait.
    story::publish(&file, &jobs(Lane::Bulk, "any", 200)).await.unwrap();
    let all = || (relay.taken().len() >= 200).then_some(());
    deadline::wait_for("all of them", 4 * SOON, all).unwrap();
    assert_eq!(relay.connections().1, 1, "at once");
    for worker in workers {
        let log = worker.stderr();
        let sent = log.matches("Sent job").count();
        println!("{sent} by one of them");
        assert!(sent > 10, "{sent}");
        assert!(!log.contains("became free in time"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_has_open_that_a_reload_replaced_counts_for_the_cap() {
    let relay = ThrottlingRelay::start(100_000).unwrap();
    relay.answer_after(Duration::from_secs(3));
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = |seconds: u64| {
        let limits = format!("command_timeout = \"{seconds}s\"\nconnections_total = 6\n");
        story::relay_config(
            &file,
            &file,
            relay.port(),
            &format!("host = \"127.0.0.1\"\ntls = \"none\"\n{limits}{ROUTE}"),
        )
    };
    let worker = story::start_any(&config(20)).unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "any", 30)).await.unwrap();
    deadline::wait_for("all connections", SOON, || (relay.connections().0 == 6).then_some(())).unwrap();
    std::fs::write(worker.folder().join("postrider.toml"), config(21)).unwrap();
    let applies = || worker.stderr().contains("\"transports_replaced\":1").then_some(());
    deadline::wait_for("the changed configuration", SOON, applies).unwrap();
    // For the new one, while the old one has all connections.
    story::publish(&file, &jobs(Lane::Transactional, "more", 20)).await.unwrap();
    let all = || (relay.taken().len() >= 50).then_some(());
    deadline::wait_for("all of them", 4 * SOON, all).unwrap();
    assert_eq!(relay.connections().1, 6, "at most at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_an_operator_ends_is_over_for_the_worker_that_heard_it_too() {
    let relay = ThrottlingRelay::start(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = "host = \"127.0.0.1\"\ntls = \"none\"\n\
                [[shaping_rule]]\nname = \"patience\"\nmatch = { codes = [\"421\"] }\npause = \"1h\"\n";
    let config = story::relay_config(&file, &file, relay.port(), &format!("{more}{ROUTE}"));
    let _worker = story::start_any(&config).unwrap();
    let limits = |arguments: &[&str]| {
        let arguments = ["limits"].into_iter().chain(arguments.iter().copied());
        let done = Postrider::command(arguments).config(config.clone()).run(SOON).unwrap();
        assert!(done.status.success(), "{}", done.stderr);
        done.stdout
    };
    story::publish(&file, &jobs(Lane::Transactional, "any", 1)).await.unwrap();
    let paused = || {
        let shown = limits(&["ls", "--format", "json"]);
        let rows = shown.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter(|row| row["paused_for_s"].is_number()).map(|row| row["scope"].as_str().unwrap().to_owned()).next()
    };
    let scope = deadline::wait_for("a pause", SOON, paused).unwrap();
    relay.allow(1000);
    // Whoever had its token before the pause may still hear of it for a moment; an operator is slower than that.
    let since = std::time::Instant::now();
    deadline::wait_for("an operator", SOON, || (since.elapsed().as_secs() >= 3).then_some(())).unwrap();
    limits(&["resume", &scope]);
    story::publish(&file, &jobs(Lane::Transactional, "any", 5)).await.unwrap();
    deadline::wait_for("fresh mail", SOON, || (relay.taken().len() >= 5).then_some(())).unwrap();
}
