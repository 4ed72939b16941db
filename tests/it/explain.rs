//! What `explain`, `simulate` and `check` say before anything is sent.

use postrider_schemas::examples;
use postrider_tests::{
    postrider::{Finished, Postrider},
    story::SOON,
};

const CONFIG: &str = r#"
[transport.relay]
kind = "smtp"
host = "relay.test"
[transport.api]
kind = "sendgrid"
api_key = "s3cret"
[[route]]
name = "tracked"
when = { tracking = true }
send = ["api"]
[[route]]
name = "customers"
when = { recipient_domains = ["customer.example"], lane = "transactional" }
send = ["relay", "api"]
[[route]]
name = "rest"
send = ["relay"]
"#;

fn run(arguments: &[&str], config: &str, input: &str) -> Finished {
    Postrider::command(arguments.iter().copied()).config(config).input(input).may_print_addresses().run(SOON).unwrap()
}

fn example(name: &str) -> &'static str {
    examples::ALL.iter().find(|(one, _)| one.contains(name)).map(|(_, text)| *text).unwrap()
}

#[test]
fn explain_names_the_rule_the_order_and_why_not_the_others() {
    let done = run(&["explain", "-"], CONFIG, example("receipt"));
    assert!(done.status.success(), "{}", done.stderr);
    for part in
        ["not by `tracked`: tracking = true does not hold", "by `customers`", "1. relay (smtp)", "2. api (sendgrid)"]
    {
        assert!(done.stdout.contains(part), "{part} in {}", done.stdout);
    }
    assert!(!done.stdout.contains('@'), "no address: {}", done.stdout);
}

#[test]
fn explain_gives_json_and_says_which_transport_cannot_carry_a_job() {
    let config =
        CONFIG.replace("when = { tracking = true }\nsend = [\"api\"]", "when = { tags = \"never\" }\nsend = [\"api\"]");
    let mut job: serde_json::Value = serde_json::from_str(example("receipt")).unwrap();
    job["tracking"] = serde_json::json!({ "opens": true });
    let done = run(&["explain", "-", "--format", "json"], &config, &job.to_string());
    assert!(done.status.success(), "{}", done.stderr);
    let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let choices = &told["parts"][0]["transports"];
    assert_eq!((&choices[0]["transport"], &choices[0]["ruled_out"]), (&"relay".into(), &"cannot track opens".into()));
    assert_eq!((&choices[1]["transport"], &choices[1]["ruled_out"]), (&"api".into(), &serde_json::Value::Null));
    job["to"] = serde_json::json!(["zoe@other.example"]);
    let done = run(&["explain", "-"], &config, &job.to_string());
    assert!(
        !done.status.success() && done.stdout.contains("no transport of this route can carry it"),
        "{}",
        done.stdout
    );
    let done = run(&["explain", "-"], &config, "{\"from\": 7}");
    assert!(
        !done.status.success() && done.stderr.contains("line 1: field `from`: expected an address"),
        "{}",
        done.stderr
    );
}

#[test]
fn simulate_counts_the_jobs_that_a_new_configuration_moves() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let one_line = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap().to_string();
    let mut lines: Vec<String> = examples::ALL.iter().map(|(_, text)| one_line(text)).collect();
    let mut tracked: serde_json::Value = serde_json::from_str(example("newsletter")).unwrap();
    tracked["tracking"] = serde_json::json!({ "clicks": true });
    lines.push(tracked.to_string());
    let jobs = file("jobs.jsonl", &lines.join("\n"));
    let old = file(
        "old.toml",
        &CONFIG.replace("[\"relay\"]", "[\"api\"]").replace("[\"relay\", \"api\"]", "[\"api\", \"relay\"]"),
    );
    let new = file("new.toml", CONFIG);
    let command = ["simulate", "--config", &new, "--against", &old, "--jobs", &jobs, "--format", "json"];
    let done = Postrider::command(command).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let count = examples::ALL.len();
    assert_eq!(
        (&told["jobs"], &told["moved"]),
        (&(count + 1).into(), &count.into()),
        "all but the tracked one: {told}"
    );
    let done = Postrider::command(command[..7].iter().copied()).run(SOON).unwrap();
    assert!(done.stdout.contains("moves to") && done.stdout.contains("stays"), "{}", done.stdout);
    let broken = file("broken.jsonl", "{}\n");
    let done = Postrider::command(["simulate", "--config", &new, "--jobs", &broken]).run(SOON).unwrap();
    assert!(!done.status.success() && done.stderr.contains("line 1:"), "{}", done.stderr);
}

/// A configuration that `check` must refuse, saying all of this.
#[track_caller]
fn check_refused(config: &str, expected: &[&str]) {
    let done = run(&["check"], config, "");
    assert!(!done.status.success(), "accepted: {config}");
    for part in expected {
        assert!(done.stderr.contains(part), "expected {part:?} in: {}", done.stderr);
    }
    assert!(!done.stderr.contains("s3cret"), "{}", done.stderr);
}

#[test]
fn check_refuses_rules_and_transports_that_cannot_work() {
    let change = |from: &str, to: &str| {
        assert!(CONFIG.contains(from), "{from}");
        CONFIG.replacen(from, to, 1)
    };
    check_refused(
        &change("send = [\"api\"]", "send = [\"relay\"]"),
        &["route `tracked`", "relay", "cannot track opens"],
    );
    check_refused(&change("send = [\"api\"]", "send = [\"apo\"]"), &["route `tracked`", "`apo`", "api, relay"]);
    check_refused(&change("send = [\"api\"]", "send = { api = 0 }"), &["route `tracked`", "weight of `api` is 0"]);
    check_refused(&change("send = [\"api\"]", "send = []"), &["route `tracked`", "at least one transport"]);
    check_refused(&change("send = [\"api\"]", "send = [\"api\", \"api\"]"), &["route `tracked`", "twice"]);
    check_refused(
        &change("tracking = true", "trackin = true"),
        &["unknown setting `route.0.when.trackin`", "did you mean `tracking`?"],
    );
    check_refused(&change("tracking = true", "tags = \"a*b\""), &["route `tracked`", "when.tags", "a*b"]);
    check_refused(&change("tracking = true", "tags = { regex = \"(\" }"), &["route `tracked`", "regular expression"]);
    check_refused(
        &change("tracking = true", "recipient_groups = [\"g\"]"),
        &["route `tracked`", "there is no group `g`"],
    );
    check_refused(
        &change("tracking = true", "lane = \"bulk\", not = { lane = \"bulk\" }"),
        &["route `tracked`", "can never match"],
    );
    check_refused(&change("name = \"customers\"", "name = \"tracked\""), &["route `tracked`", "used twice"]);
    check_refused(
        &change("tracking = true", "recipient_domains = [\".example\"]"),
        &["route `customers`", "can never match", "tracked"],
    );
    check_refused(&change("api_key = \"s3cret\"", ""), &["transport.api.api_key", "required"]);
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = { env = \"NOT_THERE\" }"),
        &["transport.api.api_key", "NOT_THERE"],
    );
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = \"s3cret\"\nregion = \"x\""),
        &["transport.api.region", "sendgrid"],
    );
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = \"s3cret\"\ncolour = \"x\""),
        &["unknown setting `transport.api.colour`"],
    );
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = \"s3cret\"\ntimeout = \"x\""),
        &["transport.api.timeout", "duration"],
    );
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = \"s3cret\"\nbase_url = \"ftp://x\""),
        &["transport.api.base_url"],
    );
    check_refused(
        &change("api_key = \"s3cret\"", "api_key = \"s3cret\"\nca_file = \"/nonexistent\""),
        &["transport.api", "/nonexistent"],
    );
    check_refused(
        "[transport.ses]\nkind = \"ses\"\n[[route]]\nname = \"a\"\nsend = [\"ses\"]\n",
        &["transport.ses.region"],
    );
}
