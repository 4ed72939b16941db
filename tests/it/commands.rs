//! The command line, from outside.

use std::time::{Duration, Instant};

use postrider_schemas::examples;
use postrider_tests::{
    postrider::Postrider,
    rabbitmq::Rabbit,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

const LONG: Duration = Duration::from_secs(120);

#[test]
fn the_demo_needs_no_service_and_counts_every_message() {
    let done = Postrider::command(["demo", "--jobs", "300"]).run(LONG).unwrap();
    assert!(done.status.success(), "{} {}", done.stdout, done.stderr);
    for (name, value) in
        [("published", "300"), ("delivered", "300"), ("duplicates", "0"), ("lost", "0"), ("damaged", "0")]
    {
        let line = done.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        assert_eq!(line.split_whitespace().last(), Some(value), "{}", done.stdout);
    }
}

#[test]
fn the_demo_runs_on_a_broker_and_a_store() {
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    let (queue, store) = (env.amqp_url(), env.redis_url());
    let done = Postrider::command(["demo", "--jobs", "300", "--queue", &queue, "--store", &store]).run(LONG).unwrap();
    assert!(done.status.success(), "{} {}", done.stdout, done.stderr);
}

#[test]
fn send_names_bad_lines_and_publishes_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), ROUTE);
    let line = |document: &str| document.split_whitespace().collect::<Vec<_>>().join(" ");
    let (first, second) = (line(examples::ALL[0].1), line(examples::ALL[1].1));
    let lines = format!("{first}\nnot json\n\n{{\"subject\": 7}}\n{second}\n");
    let send = |more: &[&str]| {
        let arguments = ["send"].iter().chain(more).copied();
        Postrider::command(arguments).config(config.clone()).input(lines.clone()).run(SOON).unwrap()
    };
    let done = send(&[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("line 2: ") && done.stderr.contains("line 4: field `subject`"), "{}", done.stderr);
    assert!(done.stderr.contains("published 2, not a job 2, not confirmed 0"), "{}", done.stderr);
    let done = send(&["--strict"]);
    assert!(done.stderr.contains("published 1, not a job 1"), "{}", done.stderr);
    // Two at one a second take a second at least.
    let start = Instant::now();
    assert!(send(&["--rate", "1"]).stderr.contains("published 2"));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let done = send(&["--from-line", "5"]);
    assert!(done.status.success() && done.stderr.contains("published 1, not a job 0"), "{}", done.stderr);
    // Six messages of two jobs: the worker sends two mails.
    let worker = Postrider::worker(config).unwrap();
    sink.wait_for(2, SOON).unwrap();
    postrider_tests::deadline::wait_for("the repetitions to be dropped", SOON, || {
        (worker.stderr().matches("came again after its end").count() == 4).then_some(())
    })
    .unwrap();
    assert_eq!(sink.count().unwrap(), 2);
}

#[test]
fn send_and_explain_take_a_document_as_people_write_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = story::config(&file, &file, 9, ROUTE);
    let (one, two) = (examples::ALL[0].1, examples::ALL[1].1);
    let run = |arguments: &[&str], input: &str| {
        let command = Postrider::command(arguments.iter().copied()).config(config.clone());
        command.input(input.to_owned()).may_print_addresses().run(SOON).unwrap()
    };
    let id = |document: &str| {
        serde_json::from_str::<serde_json::Value>(document).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let done = run(&["send", "--dry-run"], one);
    assert!(
        done.status.success() && done.stdout.contains(&id(one)) && done.stdout.contains("bytes"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("nothing was published"), "{}", done.stderr);
    let mut template: serde_json::Value = serde_json::from_str(examples::ALL[8].1).unwrap();
    template.as_object_mut().unwrap().remove("variables");
    let done = run(&["send", "--dry-run"], &template.to_string());
    assert!(!done.status.success() && done.stderr.contains("line 1: "), "{}{}", done.stdout, done.stderr);
    let lines = [one, &template.to_string(), two].map(|document| document.replace('\n', " ")).join("\n");
    let done = run(&["check", "--jobs", "-"], &lines);
    assert!(!done.status.success() && done.stdout.starts_with("line 2: "), "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.ends_with("3 jobs, 1 with a fault\n"), "{}", done.stdout);
    let done = run(&["send"], &format!("[{one},\n{two}]"));
    assert!(done.status.success(), "{}", done.stderr);
    let mut printed: Vec<&str> = done.stdout.lines().collect();
    printed.sort_unstable();
    let mut expected = [id(one), id(two)];
    expected.sort_unstable();
    assert_eq!(printed, expected);
    let done = run(&["explain", "-"], &format!("{one}\n{two}"));
    assert_eq!(done.stdout.matches("\nlimits\n").count(), 2, "{}{}", done.stdout, done.stderr);
}

#[test]
fn check_asks_each_neighbour_where_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let check = |port: u16| {
        Postrider::command(["check", "--connect"]).config(story::config(&file, &file, port, ROUTE)).run(SOON).unwrap()
    };
    let done = check(sink.port());
    assert!(
        done.status.success() && done.stdout.contains("transport relay: answers\n"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    let closed = postrider_tests::ports::free().unwrap();
    let done = check(closed);
    assert!(
        !done.status.success() && done.stderr.contains("transport relay: connect: "),
        "{}{}",
        done.stdout,
        done.stderr
    );
}

#[test]
fn check_says_what_is_wrong_and_where() {
    let check = |toml: &str| Postrider::command(["check"]).config(toml).run(SOON).unwrap();
    let sound = format!("[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\n{ROUTE}");
    let done = check(&sound);
    assert!(done.status.success() && done.stdout.ends_with("ok\n"), "{}{}", done.stdout, done.stderr);
    let done = check(&sound.replace("host", "hots"));
    assert!(!done.status.success() && done.stderr.contains("transport.relay"), "{}", done.stderr);
    let done = check(&format!("{sound}[admin]\nlisten = \"everywhere\"\n"));
    assert!(!done.status.success() && done.stderr.contains("admin.listen"), "{}", done.stderr);
}

#[test]
fn check_says_what_each_limit_is_for() {
    let config = format!(
        "[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\nrate = [\"100/s\", \"1_000_000/d\"]\nsender_rate = \"10/s\"\n\
         connections_total = 50\n{ROUTE}[limits]\ntenant_rate = \"50/s\"\n[limits.tenants.shop]\nrate = \"20/s\"\nweight = 2\n\
         [groups]\nfriends = [\"friend.example\"]\nuniversities = [\".edu\"]\n\
         [[throttle]]\nname = \"google\"\nrate = \"20/s\"\n[[throttle]]\nname = \"friends\"\n\
         [[throttle]]\nname = \"partner\"\ndomains = [\"partner.example\"]\nmx = [\".mail.partner.example\"]\nrate = [\"5/s\", \"1000/h\"]\n\
         [[throttle]]\nname = \"others\"\nrate = \"10/s\"\n"
    );
    let check = |config: &str| {
        let done = Postrider::command(["check"]).config(config).run(SOON).unwrap();
        assert!(done.status.success(), "{}", done.stderr);
        done
    };
    let done = check(&config);
    for line in [
        "limit transport relay: 100/s and 1000000/d burst 1000000; 10/s for each sender's domain; at most 50 connections over all workers\n",
        "limit tenant shop: 20/s, weight 2\nlimit every other tenant: 50/s\n",
        "throttle google: 20/s, for the group that ships: gmail.com, googlemail.com; mail exchangers .google.com",
        "throttle friends: 10/s as for all others, for the domains of [groups] friend.example\n",
        "throttle partner: 5/s and 1000/h burst 1000, for partner.example; mail exchangers .mail.partner.example (which nobody looks at",
        "throttle others: 10/s, for every other domain, each on its own",
        "list universities: for routes alone: .edu\n",
    ] {
        assert!(done.stdout.contains(line), "{line:?} in {}", done.stdout);
    }
    let of_limits = |line: &&str| line.contains("warning") && !line.contains("EHLO");
    assert_eq!(done.stderr.lines().find(of_limits), None, "a machine whose name has no dot is warned of that alone");
    let looked_at = check(&format!("{config}[dns]\ngroups = true\n"));
    assert!(looked_at.stdout.contains(".mail.partner.example\n"), "{}", looked_at.stdout);
    let misspelt = check(&config.replace("\"others\"", "\"gogle\""));
    assert!(
        misspelt.stdout.contains("throttle gogle: 10/s, for every other domain, each on its own"),
        "{}",
        misspelt.stdout
    );
    assert!(
        misspelt.stderr.contains("warning: The throttle `gogle`") && misspelt.stderr.contains("`google`"),
        "{}",
        misspelt.stderr
    );
}

#[test]
fn check_tells_which_credentials_are_there_and_never_what_they_are() {
    let config = r#"
[transport.mg]
kind = "mailgun"
domain = "mg.shop.example"
base_url = "https://api.eu.mailgun.net"
api_key = { env = "MAILGUN_KEY" }
[transport.amazon]
kind = "ses"
region = "eu-central-1"
access_key_id = "AKIDEXAMPLE"
secret_access_key = { env = "MAILGUN_KEY" }
[transport.pod]
kind = "ses"
region = "eu-central-1"
role_arn = "arn:aws:iam::1:role/mail"
token_file = "/nowhere/token"
[transport.hook]
kind = "webhook"
base_url = "https://hooks.shop.example:8443/s3cr3t-path?token=s3cr3t-query"
secret = { env = "MAILGUN_KEY" }
[[route]]
name = "all"
send = ["mg", "amazon", "pod", "hook"]
"#;
    let done = Postrider::command(["check"]).config(config).env("MAILGUN_KEY", "s3cr3t-key").run(SOON).unwrap();
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    for line in [
        "transport mg: mailgun https://api.eu.mailgun.net, at most 32 connections, API key is there\n",
        "transport amazon: ses https://email.eu-central-1.amazonaws.com, at most 32 connections, access key is there\n",
        "transport pod: ses https://email.eu-central-1.amazonaws.com, at most 32 connections, token file /nowhere/token cannot be read here",
        "transport hook: webhook https://hooks.shop.example:8443/..., at most 32 connections, signing secret is there\n",
    ] {
        assert!(done.stdout.contains(line), "{}", done.stdout);
    }
    assert!(!format!("{}{}", done.stdout, done.stderr).contains("s3cr3t"), "{}", done.stdout);
    let done = Postrider::command(["check"]).config(config).run(SOON).unwrap();
    assert!(!done.status.success() && done.stderr.contains("transport."), "{}", done.stderr);
}

#[test]
fn the_topology_is_verified_applied_and_exported() {
    let env =
        TestEnv::start(&EnvSpec { sink: None, redis: postrider_tests::test_env::Server::Absent, ..EnvSpec::usual() })
            .unwrap();
    let url = env.amqp_url();
    let run = |action: &str| Postrider::command(["topology", action, "--queue", &url]).run(SOON).unwrap();
    let done = run("verify");
    assert!(!done.status.success() && done.stderr.contains("postrider topology apply"), "{}", done.stderr);
    assert!(run("apply").status.success());
    assert!(run("apply").status.success(), "declaring again changes nothing");
    assert!(run("verify").status.success());
    env.vhost().delete_queue("postrider.v1.hold").unwrap();
    let done = run("verify");
    assert!(!done.status.success() && done.stderr.contains("postrider.v1.hold"), "{}", done.stderr);
    let done = Postrider::command(["topology", "export"]).run(SOON).unwrap();
    let definitions: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(definitions["queues"].as_array().map(Vec::len), Some(58));
}

#[test]
fn an_exported_topology_can_be_imported_and_then_stands() {
    let Some(rabbit) = Rabbit::start_or_skip("an imported topology").unwrap() else { return };
    let vhost = rabbit.broker().vhost().unwrap();
    let verify = || Postrider::command(["topology", "verify", "--queue", &vhost.url()]).run(SOON).unwrap();
    assert!(!verify().status.success());
    let arguments = ["topology", "export", "--format", "definitions", "--vhost", vhost.name()];
    let done = Postrider::command(arguments).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    let file = rabbit.folder().join("definitions.json");
    std::fs::write(&file, done.stdout).unwrap();
    rabbit.ctl(&["import_definitions", &file.display().to_string()]).unwrap();
    let done = verify();
    assert!(done.status.success() && done.stdout.contains("everything stands"), "{}{}", done.stdout, done.stderr);
    // Bindings cannot be asked for over AMQP: what is declared over them has to be the same.
    let bindings = || vhost.list("bindings").unwrap().len();
    let before = bindings();
    assert!(Postrider::command(["topology", "apply", "--queue", &vhost.url()]).run(SOON).unwrap().status.success());
    assert_eq!(bindings(), before, "nothing was missing");
}

#[test]
fn a_worker_that_may_only_look_says_which_command_mends_what_is_missing() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE)
        .replace("[queue]\n", "[queue]\ntopology = \"verify\"\n");
    let done = Postrider::command(["worker"]).config(config.clone()).run(SOON).unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("postrider topology apply"), "{}", done.stderr);
    assert!(env.vhost().queue_depths().unwrap().is_empty(), "it only looks");
    story::declare(&env).unwrap();
    drop(story::start(config).unwrap());
}

#[test]
fn the_worker_is_alive_and_ready_on_its_admin_address() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let port = postrider_tests::ports::free().unwrap();
    let more = format!("{ROUTE}[admin]\nlisten = \"127.0.0.1:{port}\"\n");
    let mut worker = Postrider::worker(story::config(&file, &file, 9, &more)).unwrap();
    worker.wait_for_port(port, SOON).unwrap();
    for path in ["healthz", "readyz"] {
        postrider_tests::deadline::wait_for(path, SOON, || {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            write!(stream, "GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .unwrap();
    }
    worker.terminate().unwrap();
    assert!(worker.wait(SOON).unwrap().success());
}
