//! What the help of every command says beside its options: its group, one example, and what its exit codes mean.

use std::fmt::Write as _;

use clap::Command;

/// Commands by what a person wants to do, in the order of a first day.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Try it", &["demo", "dev"]),
    ("Configure", &["config", "check", "explain", "simulate", "topology"]),
    ("Send", &["send", "schema"]),
    ("Run", &["worker", "gateway", "keys", "health"]),
    ("Look", &["status", "trace", "events"]),
    ("Act", &["limits", "cancel", "dead", "hold", "unroutable"]),
];
/// Commands for the shell alone.
const SHELL: [&str; 3] = ["completions", "man", "help"];

/// One command: its words, an example, and what ends it with 1.
struct Explained {
    command: &'static str,
    example: &'static str,
    fails: &'static str,
}

const fn one(command: &'static str, example: &'static str, fails: &'static str) -> Explained {
    Explained { command, example, fails }
}

/// Where nothing more is to be said.
const NOT_DONE: &str = "It was not done; the message says why.";

/// Every command that does something.
const EXPLAINED: [Explained; 40] = [
    one("demo", "postrider demo --jobs 5000", "A message was lost, doubled or damaged."),
    one("dev", "postrider dev --file postrider.db", NOT_DONE),
    one("config default", "postrider config default", NOT_DONE),
    one("config init", "postrider config init postrider.toml", "The file is there already."),
    one(
        "check",
        "postrider check --config postrider.toml",
        "The configuration has a fault, or a neighbour does not answer.",
    ),
    one("explain", "postrider explain job.json --now", "No transport can carry the job."),
    one("simulate", "postrider simulate --config new.toml --against old.toml --jobs jobs.jsonl", "A line is no job."),
    one("topology verify", "postrider topology verify", "Something is missing on the broker."),
    one("topology apply", "postrider topology apply --queue amqp://broker", NOT_DONE),
    one("topology export", "postrider topology export --vhost mail", NOT_DONE),
    one("send", "postrider send jobs.jsonl --rate 50", "Something was no job, or was not confirmed."),
    one("schema", "postrider schema event", NOT_DONE),
    one("worker", "postrider worker --config postrider.toml", "It could not start, or its drain was cut short."),
    one("gateway", "postrider gateway --config postrider.toml", "It could not start, or a request got no answer."),
    one("keys new", "postrider keys new --tenant shop --sender-domain shop.example", NOT_DONE),
    one("keys ls", "postrider keys ls", NOT_DONE),
    one("keys aws", "postrider keys aws 0190a5c07a10", "No such key is there."),
    one("keys revoke", "postrider keys revoke 0190a5c07a10", "No such key is there."),
    one("health", "postrider health --ready", "The worker is not well, or does not answer."),
    one("status", "postrider status --watch 5s", "The queue or the store does not answer."),
    one("trace", "postrider trace 0190a5c0-7a10-7c3e-9d51-000000000001", "Nothing is known of the job."),
    one("events", "postrider events --count 20", "The connection was lost and did not come back."),
    one("limits ls", "postrider limits ls transport:", NOT_DONE),
    one("limits pause", "postrider limits pause transport:relay --for 30m --reason \"blocked\"", NOT_DONE),
    one("limits resume", "postrider limits resume transport:relay", NOT_DONE),
    one("limits set", "postrider limits set transport:relay 20/s --for 2h --reason \"warm-up\"", NOT_DONE),
    one(
        "cancel",
        "postrider cancel --key order:4711/receipt --tenant shop",
        "It was sent, is being sent, ended otherwise, or is not known.",
    ),
    one("dead ls", "postrider dead ls --reason retries-exhausted --newer 2h", "No job that was named rests there."),
    one("dead show", "postrider dead show 0190a5c0-7a10-7c3e-9d51-000000000001", "No such job rests there."),
    one(
        "dead retry",
        "postrider dead retry --domain example.com --rate 50 --dry-run",
        "A job was kept, or does not rest there.",
    ),
    one(
        "dead drop",
        "postrider dead drop --reason conflict --older 12h --dry-run",
        "No job that was named rests there.",
    ),
    one("hold ls", "postrider hold ls --transport relay --wide", "No job that was named rests there."),
    one("hold show", "postrider hold show 0190a5c0-7a10-7c3e-9d51-000000000001", "No such job rests there."),
    one(
        "hold resend",
        "postrider hold resend 0190a5c0-7a10-7c3e-9d51-000000000001",
        "A job was kept, or does not rest there.",
    ),
    one(
        "hold drop",
        "postrider hold drop --transport relay --newer 1h --dry-run",
        "No job that was named rests there.",
    ),
    one("unroutable ls", "postrider unroutable ls --wide", "No message that was named rests there."),
    one("unroutable move", "postrider unroutable move --all --dry-run", "A message was kept, or does not rest there."),
    one(
        "unroutable drop",
        "postrider unroutable drop --tenant shop --dry-run",
        "No message that was named rests there.",
    ),
    one("completions", "postrider completions bash > /etc/bash_completion.d/postrider", NOT_DONE),
    one("man", "postrider man --folder /usr/local/share/man/man1", NOT_DONE),
];

/// Adds groups, examples and exit codes.
pub(super) fn explained(command: Command) -> Command {
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        groups(&command)
    );
    let command = command
        .help_template(template)
        .after_help("postrider COMMAND --help shows an example and the exit codes of a command.");
    EXPLAINED.iter().fold(command, |command, one| {
        let mut words = one.command.split(' ');
        match (words.next(), words.next()) {
            (Some(word), Some(sub)) => command.mut_subcommand(word, |it| it.mut_subcommand(sub, |it| told(it, one))),
            (Some(word), None) => command.mut_subcommand(word, |it| told(it, one)),
            (None, _) => command,
        }
    })
}

fn told(command: Command, one: &Explained) -> Command {
    command.after_long_help(format!(
        "Example:\n  {}\n\nExit codes:\n  0  Done.\n  1  {}\n  2  The command line is wrong.",
        one.example, one.fails
    ))
}

/// The list of commands, each in its group.
fn groups(command: &Command) -> String {
    let mut out = String::new();
    for (title, names) in GROUPS.into_iter().chain([("Shell", SHELL.as_slice())]) {
        let _ = writeln!(out, "{title}:");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map_or_else(|| "Print the help of a command".to_owned(), ToString::to_string);
            let _ = writeln!(out, "  {name:<13}{about}");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of every command that has no others below it.
    fn leaves() -> Vec<String> {
        let command = super::super::command();
        let visible = |one: &&Command| one.get_name() != "help" && !one.is_hide_set();
        let mut found = Vec::new();
        for one in command.get_subcommands().filter(visible) {
            let below: Vec<&Command> = one.get_subcommands().filter(visible).collect();
            if below.is_empty() {
                found.push(one.get_name().to_owned());
            }
            found.extend(below.iter().map(|sub| format!("{} {}", one.get_name(), sub.get_name())));
        }
        found
    }

    fn help(words: &str) -> String {
        let arguments = std::iter::once("postrider").chain(words.split(' ').filter(|word| !word.is_empty()));
        let asked = super::super::command().try_get_matches_from(arguments.chain(["--help"]));
        asked.expect_err("help ends the program").to_string()
    }

    #[test]
    fn every_command_has_an_example_that_it_takes_and_says_what_its_exit_codes_mean() {
        for words in &leaves() {
            let Some(one) = EXPLAINED.iter().find(|one| one.command == words) else {
                panic!("{words} is not explained")
            };
            let text = help(words);
            assert!(text.contains(one.example) && text.contains("Exit codes:") && text.contains(one.fails), "{text}");
            assert!(one.example.starts_with(&format!("postrider {words}")), "{words}: {}", one.example);
            let line = one.example.split(" > ").next().unwrap_or_default().replace('"', "");
            let taken = super::super::command().try_get_matches_from(line.split(' '));
            assert!(taken.is_ok(), "{line}: {:?}", taken.err().map(|error| error.to_string()));
        }
        assert_eq!(EXPLAINED.len(), leaves().len());
    }

    #[test]
    fn every_command_stands_in_one_group_and_each_help_fits_80_columns() {
        let command = super::super::command();
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).chain(SHELL).collect();
        let mut known: Vec<&str> =
            command.get_subcommands().filter(|one| !one.is_hide_set()).map(Command::get_name).chain(["help"]).collect();
        listed.sort_unstable();
        known.sort_unstable();
        known.dedup();
        assert_eq!(listed, known);
        for words in leaves().iter().map(String::as_str).chain(["", "limits", "dead"]) {
            for line in help(words).lines() {
                assert!(line.chars().count() <= 80, "{words}: {line}");
            }
        }
    }

    #[test]
    fn each_help_begins_with_an_imperative() {
        const IMPERATIVES: [&str; 29] = [
            "Ask", "Cancel", "Consume", "Count", "Declare", "Delete", "End", "List", "Move", "Print", "Publish",
            "Render", "Run", "Send", "Set", "Show", "Stop", "Try", "Validate", "Verify", "Write", "Resend", "Retry",
            "Pause", "Resume", "Export", "Take", "Make", "Revoke",
        ];
        for words in leaves() {
            let text = help(&words);
            let first = text.split_whitespace().next().unwrap_or_default();
            assert!(IMPERATIVES.contains(&first), "{words}: {}", text.lines().next().unwrap_or_default());
        }
    }
}
