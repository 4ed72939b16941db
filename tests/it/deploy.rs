//! What ships in `deploy/` is true to the code, renders in every combination, and is taken by the tools that read it.
//!
//! Nothing here asks a cluster or builds an image. Files that are made from others are held equal to them; `POSTRIDER_TEST_WRITE=1` makes
//! them anew.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ExchangeDeleteOptions},
};
use postrider_schemas::{
    Lane, ladder,
    topology::{DUE_EXCHANGE, Topology},
};
use postrider_tests::{
    deadline,
    folder::Folder,
    ports,
    postrider::Postrider,
    process::{self, find, only_foreign},
    rabbitmq::{Options, Rabbit},
    say_skipped,
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
    topology_manifests,
};

const LIMIT: Duration = Duration::from_secs(240);

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path).canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap()
}

/// A program of the Python environment that `tests/setup.sh` makes; says what is skipped without it.
fn tool(test: &str, name: &str) -> Option<String> {
    let venv = std::env::var_os("POSTRIDER_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-venv"), PathBuf::from);
    let program = venv.join("bin").join(name);
    if !program.exists() {
        say_skipped(test, &format!("{name} is not installed: run tests/setup.sh"));
        return None;
    }
    Some(program.display().to_string())
}

/// One check of `tests/components/<script>`, in which the arguments say what is looked at.
fn check(test: &str, script: &str, arguments: &[&str]) {
    let tools = ["python", "helm", "kubectl", "kubernetes-validate"].map(|name| tool(test, name));
    let [Some(python), Some(_), Some(_), Some(_)] = tools else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("components").join(script).display().to_string();
    let arguments = ["-B", script.as_str()].into_iter().chain(arguments.iter().copied());
    let said = process::run(&python, arguments, &[], LIMIT).unwrap();
    if let Some(why) = said.lines().find_map(|line| line.strip_prefix("SKIPPED: ")) {
        say_skipped(test, why);
    }
    println!("{said}");
}

/// A file that is made from something else is what it would be made to today.
#[track_caller]
fn assert_made(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    if std::env::var_os("POSTRIDER_TEST_WRITE").is_some() {
        fs::write(&file, text).unwrap();
    }
    let stands = fs::read_to_string(&file).unwrap_or_default();
    assert!(stands == text, "deploy/{path} is out of date; POSTRIDER_TEST_WRITE=1 makes it anew");
}

fn permissions() -> String {
    serde_json::to_string_pretty(&postrider_schemas::permissions::to_definitions("/")).unwrap() + "\n"
}

fn definitions(shards: u16) -> String {
    serde_json::to_string_pretty(&Topology::v1(shards).to_definitions("/")).unwrap() + "\n"
}

/// The alerts as an object of the Prometheus operator.
fn prometheus_rule() -> String {
    let head = "# Made from deploy/alerts/postrider.rules.yaml by the test that holds the two equal. Do not edit.\n\
                apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: postrider\nspec:\n";
    let indented = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") };
    head.to_owned() + &read("alerts/postrider.rules.yaml").lines().map(indented).collect::<String>()
}

#[test]
fn what_is_made_from_other_files_is_up_to_date() {
    assert_made("rabbitmq/permissions.json", &permissions());
    for path in ["rabbitmq/definitions.json", "helm/postrider/files/definitions.json"] {
        assert_made(path, &definitions(1));
    }
    assert_made("kustomize/components/topology-operator/objects.yaml", &topology_manifests::objects(&Topology::v1(1)));
    assert_made("kustomize/components/alerts/rule.yaml", &prometheus_rule());
    assert_made("helm/postrider/files/postrider.rules.yaml", &read("alerts/postrider.rules.yaml"));
    for path in ["helm/postrider/files/dashboard.json", "kustomize/components/dashboard/postrider.json"] {
        assert_made(path, &read("dashboards/postrider.json"));
    }
}

#[test]
fn the_definitions_are_what_the_command_prints() {
    let done = Postrider::command(["topology", "export", "--format", "definitions"]).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    assert!(done.stdout == read("rabbitmq/definitions.json"), "deploy/rabbitmq/definitions.json is out of date");
    let done = Postrider::command(["topology", "export", "--format", "permissions"]).run(SOON).unwrap();
    assert!(done.stdout == read("rabbitmq/permissions.json"), "{}", done.stdout);
}

#[test]
fn the_charts_operator_objects_are_what_the_code_declares() {
    let folder = Folder::new("deploy").unwrap();
    for shards in [1, 3] {
        let file = folder.write(&format!("{shards}.json"), &definitions(shards)).unwrap();
        let (file, shards) = (file.display().to_string(), shards.to_string());
        check("operator objects", "deploy_manifests.py", &["operator", &file, &shards]);
    }
}

#[test]
fn the_chart_renders_valid_objects_in_every_combination_of_its_switches() {
    check("helm", "deploy_manifests.py", &["helm"]);
}

#[test]
fn the_chart_refuses_a_grace_period_that_the_drain_does_not_fit_and_other_mistakes() {
    check("helm refusals", "deploy_manifests.py", &["refusals"]);
}

#[test]
fn the_kustomize_folders_are_valid_and_say_the_same_as_the_chart() {
    check("kustomize", "deploy_manifests.py", &["kustomize"]);
}

#[test]
fn the_chart_renders_what_it_rendered_before() {
    let Some(helm) = tool("helm snapshots", "helm") else { return };
    let chart = deploy("helm/postrider").display().to_string();
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("components/deploy_values.yaml").display().to_string();
    let render = |more: &[&str]| {
        let usual = ["template", "mail", chart.as_str(), "--namespace", "mail"];
        process::run(&helm, usual.into_iter().chain(more.iter().copied()), &[], LIMIT).unwrap()
    };
    insta::assert_snapshot!("helm_defaults", render(&[]));
    let everything = "gateway.enabled=true,topology.mode=job,keda.enabled=true,serviceMonitor.enabled=true,\
                      keda.prometheus.serverAddress=http://prometheus:9090";
    insta::assert_snapshot!("helm_everything", render(&["--values", &values, "--set", everything]));
    let queues = ["--set", "keda.enabled=true,keda.source=queues", "--show-only", "templates/keda.yaml"];
    insta::assert_snapshot!("helm_keda_queues", render(&queues));
}

#[test]
fn every_instrument_has_a_derived_name_and_bounded_labels() {
    check("metrics", "deploy_papers.py", &["metrics"]);
}

#[test]
fn every_query_names_metrics_that_exist_and_every_metric_is_asked_for() {
    check("queries", "deploy_papers.py", &["queries"]);
}

#[test]
fn every_alert_is_tested_and_has_a_section_of_the_runbook() {
    check("alerts", "deploy_papers.py", &["alerts"]);
}

#[test]
fn every_alert_fires_and_clears() {
    if find(Path::new("promtool")).is_err() {
        return say_skipped("alerts in promtool", "promtool is not installed: run tests/setup.sh");
    }
    let file = |name: &str| deploy(&format!("alerts/{name}")).display().to_string();
    process::run("promtool", ["check", "rules", &file("postrider.rules.yaml")], &[], LIMIT).unwrap();
    process::run("promtool", ["test", "rules", &file("postrider.test.yaml")], &[], LIMIT).unwrap();
}

#[test]
fn the_compose_file_is_whole() {
    check("compose", "deploy_papers.py", &["compose"]);
}

#[test]
fn the_dockerfile_has_no_lint() {
    let Some(hadolint) = tool("hadolint", "hadolint") else { return };
    process::run(&hadolint, [deploy("Dockerfile")], &[], LIMIT).unwrap();
    let text = read("Dockerfile");
    let last = text.rsplit("\nFROM ").next().unwrap_or_default();
    assert!(last.starts_with("scratch\n") && last.contains("\nUSER 65532:65532\n"), "{last}");
}

#[test]
fn the_runbook_names_commands_and_groups_that_exist() {
    let groups = read("../workers/src/config.groups.toml");
    let mut seen = BTreeSet::new();
    for file in ["runbook.md", "../docs/sizing.md"] {
        let text = read(file);
        for line in text.lines().filter_map(|line| line.strip_prefix("postrider ")) {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            // Subcommands are in small letters; what a person fills in is not.
            let is_command = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
            let command: Vec<&str> = words.iter().take_while(is_command).copied().collect();
            let help = command.iter().chain(&["--help"]).map(|word| (*word).to_owned());
            let help = Postrider::command(help).run(SOON).unwrap();
            assert!(help.status.success(), "postrider {line}: {}", help.stderr);
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.stdout.contains(flag), "postrider {line}: there is no {flag}");
            }
            // An order for a group that is called otherwise is taken and binds nothing.
            for group in words.iter().filter_map(|word| word.strip_prefix("group:")?.split(':').nth(1)) {
                assert!(groups.contains(&format!("name = \"{group}\"")), "postrider {line}: there is no group {group}");
            }
            seen.insert(command.join(" "));
        }
    }
    assert!(seen.len() > 5, "{seen:?}");
}

/// A configuration that ships, with the file of the secret that it names in a folder of ours.
fn with_its_secret(path: &str) -> (tempfile::TempDir, String) {
    const MOUNT: &str = "/run/secrets/postrider";
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(deploy(path)).unwrap();
    assert!(text.contains(MOUNT), "{text}");
    std::fs::write(folder.path().join("relay-password"), "x\n").unwrap();
    let config = folder.path().join("postrider.toml");
    std::fs::write(&config, text.replace(MOUNT, &folder.path().display().to_string())).unwrap();
    (folder, config.display().to_string())
}

#[test]
fn the_worker_of_the_compose_file_has_a_sound_configuration() {
    let config = deploy("compose/postrider.toml").display().to_string();
    let done = Postrider::command(["check", "--config", &config]).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    let (_folder, config) = with_its_secret("kustomize/base/postrider.toml");
    let done = Postrider::command(["check", "--config", &config]).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
}

#[test]
fn every_setting_that_the_chart_gives_a_worker_is_known_and_sound() {
    let Some(helm) = tool("settings of the chart", "helm") else { return };
    let chart = deploy("helm/postrider").display().to_string();
    let arguments =
        ["template", "mail", &chart, "--show-only", "templates/workers.yaml", "--set", "topology.mode=none"];
    let rendered = process::run(&helm, arguments, &[], LIMIT).unwrap();
    let (_folder, config) = with_its_secret("kustomize/base/postrider.toml");
    let mut check = Postrider::command(["check", "--config", &config]);
    let mut count = 0;
    let lines: Vec<&str> = rendered.lines().map(str::trim).collect();
    for pair in lines.windows(2) {
        let Some(name) = pair[0].strip_prefix("- name: POSTRIDER_") else { continue };
        let from_secret = if name.starts_with("QUEUE") { "amqp://broker" } else { "redis://store" };
        let value = pair[1].strip_prefix("value: ").map_or(from_secret, |value| value.trim_matches('"'));
        check = check.env(format!("POSTRIDER_{name}"), value);
        count += 1;
    }
    let done = check.run(SOON).unwrap();
    assert!(done.status.success() && count >= 8, "{count} settings: {}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_whose_drain_is_cut_ends_within_the_margin_of_the_grace_period() {
    // What the chart asks for beyond the drain, see its checks.
    let margin = Duration::from_secs(10);
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    // It takes the message and never says a word about it.
    let relay = StallingRelay::start(StallPoint::Dot, u32::MAX).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), relay.port(), ROUTE);
    let mut worker = Postrider::worker(config.replace("drain = \"10s\"", "drain = \"1s\"")).unwrap();
    let job = story::job(Lane::Transactional, "ada@customer.example");
    story::publish(&env.amqp_url(), &[job]).await.unwrap();
    deadline::wait_for("the message at the relay", SOON, || (relay.kept().len() == 1).then_some(())).unwrap();
    worker.terminate().unwrap();
    let done = worker.finish(Duration::from_secs(1) + margin).unwrap();
    assert!(done.status.code() == Some(1) && done.stderr.contains("The drain limit passed"), "{}", done.stderr);
}

#[test]
fn the_health_command_tells_a_worker_that_runs_from_one_that_does_not() {
    let folder = Folder::new("health").unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let (port, nobody) = (ports::free().unwrap(), ports::free().unwrap());
    // It listens everywhere, as in a container.
    let config = story::config(&file, &file, nobody, ROUTE) + &format!("[admin]\nlisten = \"0.0.0.0:{port}\"\n");
    let health = |more: &[&str]| {
        let arguments = ["health"].iter().chain(more).copied();
        Postrider::command(arguments).config(config.clone()).run(SOON).unwrap()
    };
    let done = health(&[]);
    assert!(done.status.code() == Some(1) && done.stderr.contains("connecting to 127.0.0.1"), "{}", done.stderr);
    let mut worker = Postrider::worker(config.clone()).unwrap();
    deadline::wait_for("a healthy worker", SOON, || health(&["--ready"]).status.success().then_some(())).unwrap();
    assert_eq!(health(&[]).stdout, "ok\n");
    worker.freeze();
    let done = health(&[]);
    assert!(done.status.code() == Some(1) && done.stderr.contains("no answer"), "{}", done.stderr);
    worker.thaw();
    worker.kill9().unwrap();
    assert_eq!(health(&[]).status.code(), Some(1));
}

/// A node with what `deploy/rabbitmq` ships.
fn shipped_broker(test: &str) -> Option<Rabbit> {
    if only_foreign("POSTRIDER_TEST_AMQP_URL", "rabbitmq-server") {
        say_skipped(test, "it needs a RabbitMQ node of its own");
        return None;
    }
    Some(Rabbit::start_with(&Options { shipped: true, ..Options::default() }).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_takes_what_ships_and_tells_of_a_stuck_ladder_what_the_alert_asks_for() {
    let Some(rabbit) = shipped_broker("deploy/rabbitmq") else { return };
    let names = [
        ("consumer_timeout", "1800000"),
        ("dead_letter_worker_publisher_confirm_timeout", "20000"),
        ("dead_letter_worker_consumer_prefetch", "512"),
        ("cluster_partition_handling", "pause_minority"),
        ("max_message_size", "16777216"),
    ];
    for (name, value) in names {
        let said = rabbit.ctl(&["eval", &format!("application:get_env(rabbit, {name}).")]).unwrap();
        assert_eq!(said.trim(), format!("{{ok,{value}}}"), "{name}");
    }

    // From here on quicker than it ships: the wait of the dead-letter worker, and how fresh the figures are.
    for (name, value) in [("dead_letter_worker_publisher_confirm_timeout", 1000), ("quorum_tick_interval", 500)] {
        rabbit.ctl(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]).unwrap();
    }

    let url = rabbit.url();
    let topology = |action: &str| Postrider::command(["topology", action, "--queue", &url]).run(SOON).unwrap();
    assert!(!topology("verify").status.success());
    rabbit.ctl(&["import_definitions", &deploy("rabbitmq/definitions.json").display().to_string()]).unwrap();
    let done = topology("verify");
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    // What the worker declares is equivalent, argument by argument: RabbitMQ would refuse it otherwise.
    let done = topology("apply");
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);

    // The users that ship, made twice as an operator may.
    let names = ["PRODUCER_PASSWORD", "GATEWAY_PASSWORD", "WORKER_PASSWORD", "TOOL_PASSWORD", "TOPOLOGY_PASSWORD"];
    for password in ["first", "second"] {
        rabbit.script(&deploy("rabbitmq/users.sh"), &names.map(|name| (name, password))).unwrap();
    }
    let said = rabbit.ctl(&["list_permissions", "--quiet"]).unwrap();
    for role in postrider_schemas::permissions::ROLES {
        rabbit.ctl(&["authenticate_user", role.user, "second"]).unwrap();
        let line = format!("{}\t{}\t{}\t{}", role.user, role.configure, role.write, role.read);
        assert!(said.lines().any(|one| one == line), "{line}\n{said}");
    }

    // A job for one second later, while the exchange that it would go to is gone.
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.exchange_delete(DUE_EXCHANGE.into(), ExchangeDeleteOptions::default()).await.unwrap();
    let rung = ladder::rung(Duration::from_secs(1), Lane::Bulk, 0);
    let (exchange, key) = (rung.exchange.as_str().into(), rung.routing_key.as_str().into());
    let properties = BasicProperties::default().with_delivery_mode(2);
    channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"stuck", properties).await.unwrap();
    let queue = ladder::queue_name(0, 1);
    let labels = format!("{{vhost=\"/\",queue=\"{queue}\"}}");
    let stuck = [("", "1"), ("_ready", "0")]
        .map(|(what, count)| format!("rabbitmq_detailed_queue_messages{what}{labels} {count}\n"));
    deadline::wait_for("a message that nobody sees but RabbitMQ's own page", SOON, || {
        let page = rabbit.queue_metrics().ok()?;
        stuck.iter().all(|line| page.contains(line)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", rabbit.queue_metrics().unwrap()));

    // The runbook's command brings it on its way.
    assert!(topology("apply").status.success());
    let gone = format!("rabbitmq_detailed_queue_messages{labels} 0\n");
    deadline::wait_for("the message to leave the ladder", LIMIT, || {
        rabbit.queue_metrics().ok()?.contains(&gone).then_some(())
    })
    .unwrap();
    connection.close(200, "done".into()).await.unwrap();
}
