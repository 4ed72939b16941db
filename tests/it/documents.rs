//! The documents are true as far as a program can tell: links lead somewhere, every command and setting is explained, and code blocks parse.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory as _;
use postrider_schemas::{JobLimits, json_schema, wire};
use postrider_workers::{cli::Cli, config};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// Longest line of prose. Tables, links and code may be longer.
const COLUMNS: usize = 100;
/// Longest README and architecture page, in lines.
const PAGE: usize = 150;
/// Longest decision, in lines.
const DECISION: usize = 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A document: its path within the repository, and its text.
struct Document {
    path: String,
    text: String,
}

/// A fenced code block.
struct Block {
    language: String,
    code: String,
}

fn documents() -> Vec<Document> {
    let mut found = Vec::new();
    for folder in ["", "docs", "deploy", "schemas", "producer", "workers/policy", "workers/providers", "workers/store"]
    {
        let folder = root().join(folder);
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push(Document { path: name, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    assert!(found.len() > 15, "{} documents", found.len());
    found
}

impl Document {
    fn events(&self) -> Parser<'_> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES)
    }

    fn links(&self) -> Vec<String> {
        let target = |event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(dest_url.to_string()),
            _ => None,
        };
        self.events().filter_map(target).collect()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for event in self.events() {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    open = Some(Block { language: language.to_string(), code: String::new() });
                }
                Event::Text(text) => {
                    if let Some(block) = &mut open {
                        block.code.push_str(&text);
                    }
                }
                Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
                _ => {}
            }
        }
        blocks
    }

    /// The anchors of its headings, as hosts of repositories make them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        let mut heading: Option<String> = None;
        for event in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => anchors.extend(heading.take().map(|text| anchor(&text))),
                _ => {}
            }
        }
        anchors
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn prose_wraps_and_pages_stay_short() {
    for document in documents() {
        let mut in_code = false;
        for (number, line) in (1..).zip(document.text.lines()) {
            in_code ^= line.starts_with("```") || line.trim_start().starts_with("```");
            let may_be_long = in_code || line.starts_with('|') || line.contains("](") || line.contains("http");
            let columns = line.chars().count();
            assert!(may_be_long || columns <= COLUMNS, "{}:{number} has {columns} columns", document.path);
        }
        if ["README.md", "ARCHITECTURE.md"].contains(&document.path.as_str()) {
            let lines = document.text.lines().count();
            assert!(lines <= PAGE, "{} has {lines} lines", document.path);
        }
        if document.path == "DECISIONS.md" {
            for decision in document.text.split("\n## ").skip(1) {
                let lines = decision.lines().skip(1).filter(|line| !line.is_empty()).count();
                let title = decision.lines().next().unwrap_or_default();
                assert!(lines <= DECISION, "decision `{title}` has {lines} lines");
            }
            let number = |decision: &str| decision.split('.').next().unwrap_or_default().parse::<u32>().unwrap();
            let numbers: Vec<u32> = document.text.split("\n## ").skip(1).map(number).collect();
            assert!(numbers.is_sorted_by(|one, next| one < next), "{} in the order of their numbers", document.path);
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let all = documents();
    for document in &all {
        for link in document.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let here = root().join(&document.path);
            let target = if file.is_empty() { here } else { here.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which does not exist", document.path);
            if !fragment.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let anchors = Document { path: file.to_owned(), text }.anchors();
                assert!(anchors.contains(fragment), "{} links to {link}: no such heading", document.path);
            }
        }
    }
}

/// Every command with its subcommands, as it is typed.
fn commands() -> Vec<String> {
    let mut found = Vec::new();
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|one| one.get_name() != "help" && !one.is_hide_set()) {
        let subcommands: Vec<_> = command.get_subcommands().filter(|one| one.get_name() != "help").collect();
        if subcommands.is_empty() {
            found.push(format!("postrider {}", command.get_name()));
        }
        found.extend(subcommands.iter().map(|one| format!("postrider {} {}", command.get_name(), one.get_name())));
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

#[test]
fn every_command_is_explained() {
    let text: String =
        documents().into_iter().filter(|one| one.path.starts_with("docs/")).map(|one| one.text).collect();
    for command in commands() {
        assert!(text.contains(&command), "no document of docs/ shows `{command}`");
    }
}

/// The names of the settings in the compiled-in manual, those of examples in comments included.
fn settings() -> BTreeSet<String> {
    let name = |line: &str| {
        let line = line.trim_start_matches(['#', ' ']);
        let (name, _) = line.split_once(" = ")?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        is_name.then(|| name.to_owned())
    };
    config::DEFAULTS.lines().filter_map(name).collect()
}

#[test]
fn every_setting_is_explained() {
    let text: String =
        documents().into_iter().filter(|one| one.path.starts_with("docs/")).map(|one| one.text).collect();
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let settings = settings();
    assert!(settings.len() > 50, "{settings:?}");
    let missing: Vec<_> = settings.iter().filter(|name| !words.contains(name.as_str())).collect();
    // Names that examples give to lists of domains.
    let missing: Vec<_> = missing.into_iter().filter(|name| name.as_str() != "universities").collect();
    assert!(missing.is_empty(), "no document of docs/ explains {missing:?}");
}

/// Files of the programs, with their texts.
fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The settings that a text names: `section.name`, `name = value`, and what it tells people to set.
fn named_settings(text: &str) -> Vec<String> {
    const SECTIONS: [&str; 9] = ["queue", "store", "worker", "retry", "job", "admin", "log", "limits", "dns"];
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let parts: Vec<&str> = text.split('`').collect();
    let mut found = Vec::new();
    for (position, part) in parts.iter().enumerate().skip(1).step_by(2) {
        let before = parts[position - 1].trim_end();
        if before.ends_with("unknown setting") {
            continue;
        }
        let is_told = ["set", "setting"].iter().any(|word| before.ends_with(&format!(" {word}")));
        let name = match (part.split_once('.'), part.split_once(" = ")) {
            (Some((section, name)), None) if SECTIONS.contains(&section) => name,
            (_, Some((name, _))) => name,
            (None, None) if is_told && part.contains('_') => part,
            _ => continue,
        };
        found.extend(Some(name.to_owned()).filter(|name| is_name(name)));
    }
    found
}

#[test]
fn every_setting_that_a_text_names_exists() {
    let mut known: BTreeSet<&str> = config::DEFAULTS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    known.extend(postrider_workers::providers::ALL.iter().flat_map(|one| one.settings).map(|setting| setting.name));
    let mut texts: Vec<(String, String)> = documents().into_iter().map(|one| (one.path, one.text)).collect();
    for folder in ["workers", "producer", "schemas"] {
        sources(&root().join(folder), &mut texts);
    }
    let mut count = 0;
    for (path, text) in &texts {
        for line in text.lines() {
            for name in named_settings(line) {
                count += 1;
                assert!(
                    known.contains(name.as_str()),
                    "{path} names the setting `{name}`, which does not exist: {line}"
                );
            }
        }
    }
    assert!(count > 80, "{count}");
    assert_eq!(
        named_settings("or set `allow_plaintext_auth`"),
        ["allow_plaintext_auth"],
        "what such a text looks like"
    );
}

/// What people read never speaks in names of libraries or of types.
#[test]
fn no_schema_names_a_function_of_the_program() {
    for (name, text) in [("job", json_schema::job_v1()), ("event", json_schema::event_v1())] {
        for word in ["Self::", "`crate", "[`", "serde", "Option<", "Vec<"] {
            assert!(!text.contains(word), "the schema of a {name} says {word}");
        }
    }
}

#[test]
fn every_provider_has_its_row_and_its_settings() {
    let page = fs::read_to_string(root().join("docs/providers.md")).unwrap();
    for one in postrider_workers::providers::ALL {
        let row = one.row();
        assert!(page.lines().any(|line| line == row), "docs/providers.md lacks this row of {}:\n{row}", one.name);
        for setting in one.settings {
            assert!(page.contains(&format!("`{}`", setting.name)), "docs/providers.md lacks `{}`", setting.name);
        }
    }
}

#[test]
fn code_blocks_parse() {
    let mut seen = BTreeSet::new();
    for document in documents() {
        for Block { language, code } in document.blocks() {
            let place = format!("{}:\n{code}", document.path);
            match language.as_str() {
                // A part of a configuration is completed first.
                "toml" => {
                    if let Err(error) = config::load_text(&complete(&code)) {
                        panic!("{place}{error}");
                    }
                }
                "json" => {
                    let job = wire::decode(code.as_bytes(), None, &JobLimits::DEFAULT);
                    assert!(job.is_ok(), "{place}{:?}", job.err());
                }
                "sh" => shell(&code, &place),
                "python" => python(&code, &place),
                _ => continue,
            }
            seen.insert(language);
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["json", "python", "sh", "toml"]);
}

/// The block as a configuration that stands by itself: secrets are texts, and what has no route sends by every transport of the block.
fn complete(code: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut transports: Vec<String> = Vec::new();
    for line in code.lines() {
        let (name, value) = line.split_once(" = {").unwrap_or((line, ""));
        let is_secret = value.contains("env =") || value.contains("file =");
        lines.push(if is_secret { format!("{name} = \"secret\"") } else { line.to_owned() });
        let transport = line.strip_prefix("[transport.").and_then(|rest| rest.split_once(']'));
        transports.extend(transport.map(|(name, _)| name.to_owned()));
    }
    if transports.is_empty() {
        lines.push("[transport.relay]\nkind = \"smtp\"\nhost = \"relay.example.com\"".to_owned());
        transports.push("relay".to_owned());
    }
    if !code.contains("[[route]]") {
        lines.push(format!("[[route]]\nname = \"everything\"\nsend = {transports:?}"));
    }
    lines.join("\n")
}

/// Each line that calls the program is one that the program takes.
fn shell(code: &str, place: &str) {
    for line in code.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let line = line.split(" > ").next().unwrap_or_default().trim();
        if let Some(words) = line.strip_prefix("postrider ") {
            let words = words.replace('"', "'");
            let mut list = vec!["postrider".to_owned()];
            for (number, part) in words.split('\'').enumerate() {
                match number % 2 {
                    0 => list.extend(part.split_whitespace().map(str::to_owned)),
                    _ => list.push(part.to_owned()),
                }
            }
            // Names that stand for a value of the reader's.
            let list = list.into_iter().map(|word| if word == "ID" || word == "JOB-ID" { ID.to_owned() } else { word });
            if let Err(error) = Cli::command().try_get_matches_from(list) {
                panic!("{place}{line}: {error}");
            }
        }
    }
}

const ID: &str = "0190a5c0-7a10-7c3e-9d51-000000000001";

fn python(code: &str, place: &str) {
    let program = "import ast, sys; ast.parse(sys.argv[1])";
    let done = Command::new("python3").args(["-c", program, code]).output().unwrap();
    assert!(done.status.success(), "{place}{}", String::from_utf8_lossy(&done.stderr));
}
