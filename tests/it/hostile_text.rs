//! Text of relays and producers, shown to people: it neither acts on a terminal nor gives a secret away, whichever command shows it.

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    talking_relay::{Manner, TalkingRelay},
};

const PASSWORD: &str = "hunter-2/and+more";
/// AUTH PLAIN of it, its middle: independent of the user's name.
const SENT: [&str; 2] = [PASSWORD, "aHVudGVyLTIvYW5kK21vcm"];
/// Acts on terminals: an escape sequence, C1's CSI, a bell, a mark of direction.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}1m\u{202e}evil";

fn acts(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Neither acts nor tells.
#[track_caller]
fn assert_tame(what: &str, text: &str) {
    assert!(!text.contains(acts), "{what}: {text:?}");
    for secret in SENT {
        assert!(!text.contains(secret), "{what} holds a secret: {text}");
    }
}

/// Runs a command; gives what it printed once that is tame.
#[track_caller]
fn run(config: &str, arguments: &[&str], input: &str) -> String {
    let launch = Postrider::command(arguments.iter().copied()).config(config).input(input);
    let done = launch.may_print_addresses().run(SOON).unwrap();
    let text = format!("{}{}", done.stdout, done.stderr);
    assert_tame(&arguments.join(" "), &text);
    text
}

fn config(file: &str, port: u16, log: &str, more: &str) -> String {
    let login = format!("username = \"app\"\npassword = \"{PASSWORD}\"\nplaintext_auth = true\n{ROUTE}{more}");
    let config = story::config(file, file, port, &login);
    let schedule = config.lines().find(|line| line.starts_with("schedule = ")).unwrap().to_owned();
    config
        .replace(&schedule, "schedule = [\"1s\", \"1s\", \"1s\"]")
        .replace("format = \"json\"", &format!("format = \"{log}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_repeats_what_it_was_sent_gives_no_secret_away_and_acts_on_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let refuses = format!("535 5.7.8 what is {{auth}}, {PASSWORD}? {HOSTILE}");
    let relay = TalkingRelay::start(Manner { auth: Some(refuses), ..Manner::default() }).unwrap();
    for log in ["json", "pretty"] {
        let config = config(&file, relay.port(), log, "");
        let job = story::job(Lane::Transactional, "ada@dest.test");
        let mut worker = Postrider::worker(config.as_str()).unwrap();
        // It makes the file that `events` reads.
        worker.wait_for_output("Consuming", SOON).unwrap();
        let mut events = Postrider::command(["events"]).config(config.as_str()).may_print_addresses().start().unwrap();
        events.wait_for_output("listening", SOON).unwrap();
        story::publish(&file, std::slice::from_ref(&job)).await.unwrap();
        worker.wait_for_output("needs a person", SOON).unwrap();
        let shown = run(&config, &["status"], "");
        assert!(shown.contains("535 5.7.8 the relay refused the login"), "{shown}");
        // Later it repeats it where nobody expects it.
        let repeats = format!("450 4.2.0 you sent {{auth}} and {PASSWORD} \u{202e}{HOSTILE}");
        relay.change(Manner { rcpt: Some(repeats), ..Manner::default() });
        let id = job.id().to_string();
        let traced = deadline::wait_for("the refusal", SOON, || {
            let text = run(&config, &["trace", &id], "");
            text.contains("450 4.2.0").then_some(text)
        });
        assert!(traced.unwrap().contains("[***] and [***] \\u{202e}"));
        for command in [&["trace", &id, "--format", "json"][..], &["status", "--format", "json"], &["status"]] {
            run(&config, command, "");
        }
        // At the end of its tries it rests with that answer, and so it would where it was held.
        deadline::wait_for("a dead letter", 2 * SOON, || {
            (!story::rest("dead", &config).ok()?.is_empty()).then_some(())
        })
        .unwrap();
        let log = worker.stderr();
        assert!(log.contains("450 4.2.0"), "{log}");
        assert_tame("the log", &log);
        drop(worker);
        let told = events.stdout();
        assert!(told.contains("450 4.2.0") && told.contains("[***]"), "{told}");
        assert_tame("events", &told);
        drop(events);
        for rest in ["dead", "hold"] {
            assert!(run(&config, &[rest, "ls", "--wide"], "").contains("450 4.2.0"), "{rest}");
            for command in [&[rest, "ls", "--format", "json"][..], &[rest, "show", &id]] {
                run(&config, command, "");
            }
            let database = rusqlite::Connection::open(folder.path().join("queue.db")).unwrap();
            database.execute("UPDATE message SET queue = 'hold' WHERE queue = 'dead'", []).unwrap();
        }
        relay.change(Manner { auth: Some(format!("535 5.7.8 {{auth}} {HOSTILE}")), ..Manner::default() });
        std::fs::remove_file(folder.path().join("queue.db")).unwrap();
    }
}

#[test]
fn no_command_shows_text_of_others_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let named = format!("{ROUTE}[transport.\"re\u{202e}lay\"]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n")
        .replace("[\"relay\"]", "[\"relay\", \"re\u{202e}lay\"]");
    let config = config(&file, 25, "json", "").replace(ROUTE, &named);
    // As a field's name, which an error repeats.
    let line = format!(
        "{{\"from\":\"a@b.example\",\"to\":[\"c@d.example\"],\"subject\":\"x\",\"text\":\"x\",\"{HOSTILE}\\nline 2: ok\":1}}"
    );
    let sent = run(&config, &["send"], &line);
    assert!(sent.contains("line 1: ") && sent.contains("not a job 1"), "{sent}");
    let job = folder.path().join("job.json");
    std::fs::write(&job, &line).unwrap();
    run(&config, &["explain", &job.display().to_string()], "");
    let good = "{\"id\":\"0190a5c0-7a10-7c3e-9d51-000000000001\",\"from\":\"a@b.example\",\"to\":[\"c@d.example\"],\"subject\":\"x\",\"text\":\"x\"}";
    assert!(run(&config, &["explain", "-"], good).contains("re\\u{202e}lay"));
    assert!(run(&config, &["explain", "-", "--format", "json"], good).contains("re\\u202elay"));
    let toml = folder.path().join("new.toml");
    std::fs::write(&toml, &config).unwrap();
    let toml = toml.display().to_string();
    run(&config, &["simulate", "--config", &toml, "--jobs", "-"], &line);
    run(&config, &["simulate", "--config", &toml, "--jobs", "-"], good);
    assert!(run(&config, &["check"], "").contains("transport re\\u{202e}lay"));
    let paused = run(&config, &["limits", "pause", "transport:relay", "--reason", "\u{202e}mur"], "");
    assert!(paused.contains("is paused"), "{paused}");
    for arguments in
        [&["limits", "ls"][..], &["limits", "ls", "--format", "json"], &["status"], &["dead", "ls"], &["hold", "ls"]]
    {
        run(&config, arguments, "");
    }
    assert!(run(&config, &["limits", "ls", "--wide"], "").contains("\\u{202e}mur"));
}
