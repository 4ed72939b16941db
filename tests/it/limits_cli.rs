//! Operators and routes at a limit: what the commands show and do, and what `on_limit` means.

use postrider_schemas::{Job, Lane, wire};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
};

use crate::limits::{jobs, throttle, times};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_pauses_sets_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(
        &file,
        &file,
        sink.port(),
        &format!("{}{ROUTE}", throttle("slow", "5/s")).replace("\"5/s\"", "[\"5/s\", \"5000/d burst 5000\"]"),
    );
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
    let shown = limits(&["ls", "group:", "--wide"]).stdout;
    assert!(
        shown.contains("group:relay:slow  5/s and 5000/d burst 5000, paused for") && shown.contains("maintenance"),
        "{shown}"
    );

    let status = |format: &str| {
        Postrider::command(["status", "--format", format]).config(config.clone()).run(SOON).unwrap().stdout
    };
    let told: serde_json::Value = serde_json::from_str(&status("json")).unwrap();
    let binds: Vec<&serde_json::Value> = told["limits"].as_array().unwrap().iter().map(|one| &one["scope"]).collect();
    assert_eq!(binds, [scope], "{told:#}");
    assert!(
        status("text").contains("limit group:relay:slow  5/s and 5000/d burst 5000, paused for"),
        "{}",
        status("text")
    );

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
    let done = limits(&["set", scope, "50/s", "--for", "10m", "--reason", "they allow more"]);
    assert_eq!(done.stdout.trim(), format!("{scope} is held to 50/s for 10m, and to 5000/d burst 5000 as configured"));
    let set = row(scope);
    assert!((set["per_second"].as_f64().unwrap() - 50.0).abs() < 0.1 && set["paused_for_s"].is_null(), "{set}");
    assert_eq!(set["why"], "they allow more");
    // What was deferred stays away until its slot; what is fresh goes at the new pace at once.
    story::publish(&file, &jobs(Lane::Transactional, "slow", 40)).await.unwrap();
    sink.wait_for(41, SOON).unwrap();
    let fresh = times(&sink, "slow");
    let took = fresh.last().unwrap() - fresh[0];
    println!("40 at 50/s in {took:.2} s");
    assert!(took < 6.0, "{took}");
    let wrong = |arguments: &[&str], reason: &str| {
        let wrong = limits(arguments);
        assert!(!wrong.status.success() && wrong.stderr.contains(reason), "{arguments:?}: {}", wrong.stderr);
    };
    wrong(&["pause", "group:nobody:slow", "--reason", "x"], "no scope of this configuration");
    wrong(&["pause", "group:relay:gmail", "--reason", "x"], "no scope of this configuration");
    wrong(&["set", "group:relay:gmail.com", "1/s", "--reason", "x"], "the scope is group:relay:google");
    wrong(&["resume", "group:relay:gmail.com"], "the scope is group:relay:google");
    wrong(&["pause", scope, "--for", "0s", "--reason", "x"], "at least 1s");
    wrong(&["pause", scope, "--reason", " "], "say why");
    let done = limits(&["pause", "group:relay:M\u{fc}ller.Example", "--for", "30m", "--reason", "x"]);
    assert_eq!(done.stdout, "group:relay:xn--mller-kva.example is paused for 30m\n", "{}", done.stderr);
    // A throttle that is gone leaves its scope in the store for a time.
    let done = Postrider::command(["limits", "resume", scope]).config(config.replace("\"slow\"", "\"swift\""));
    let done = done.run(SOON).unwrap();
    assert!(done.status.success() && done.stdout == format!("{scope} is as configured\n"), "{}", done.stderr);
    let none = limits(&["ls", "sender:"]);
    assert!(none.status.success() && none.stderr.contains("0 shown"), "{}", none.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_behind_a_pause_without_a_rate_is_shown_with_the_last_slot() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), ROUTE);
    let run = |arguments: &[&str]| {
        let done = Postrider::command(arguments.iter().copied()).config(config.clone()).run(SOON).unwrap();
        assert!(done.status.success(), "{}", done.stderr);
        done.stdout
    };
    let row = || -> Option<serde_json::Value> {
        serde_json::from_str(run(&["limits", "ls", "transport:", "--format", "json"]).lines().next()?).ok()
    };
    let pause = |time: &str| run(&["limits", "pause", "transport:relay", "--for", time, "--reason", "maintenance"]);
    pause("10m");
    let _worker = story::start_any(&config).unwrap();
    let last_slot_in = |seconds: std::ops::Range<f64>| {
        let is = |row: &serde_json::Value| {
            row["tenants_waiting"] == 1 && row["last_slot_s"].as_f64().is_some_and(|last| seconds.contains(&last))
        };
        deadline::wait_for("those that wait", SOON, || row().filter(is).map(drop))
            .unwrap_or_else(|error| panic!("{error}: {:?}", row()));
    };
    story::publish(&file, &jobs(Lane::Bulk, "any", 5)).await.unwrap();
    last_slot_in(500.0..601.0);
    let shown = run(&["limits", "ls", "--wide"]);
    assert!(
        shown.contains("transport:relay  unlimited, paused for")
            && shown.contains("jobs of 1 tenant wait, the last slot is in "),
        "{shown}"
    );
    let status: serde_json::Value = serde_json::from_str(&run(&["status", "--format", "json"])).unwrap();
    assert_eq!(status["limits"][0]["tenants_waiting"], 1, "{status:#}");
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
