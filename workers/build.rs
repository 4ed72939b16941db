//! Writes the instruments of `deploy/metrics.toml` as Rust: the file that dashboards and alerts read is the only place that names them. Reads no more
//! of TOML than that file has; a test compares the result with what a real reader makes of it.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

/// The keys of an instrument, as they are written.
#[derive(Default)]
struct Entry<'a> {
    name: &'a str,
    kind: &'a str,
    unit: &'a str,
    help: &'a str,
    labels: Vec<&'a str>,
    buckets: &'a str,
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../deploy/metrics.toml");
    println!("cargo::rerun-if-changed={}", file.display());
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let entries = entries(&text);
    if entries.is_empty() {
        return Err(format!("{} names no instrument", file.display()).into());
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("instruments.rs"), rust(&entries)?)?;
    Ok(())
}

fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut is_instrument = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            is_instrument = line == "[[instrument]]";
            if is_instrument {
                entries.push(Entry::default());
            }
            continue;
        }
        let (Some(entry), Some((key, value)), true) = (entries.last_mut(), line.split_once(" = "), is_instrument)
        else {
            continue;
        };
        match key {
            "name" => entry.name = value.trim_matches('"'),
            "kind" => entry.kind = value.trim_matches('"'),
            "unit" => entry.unit = value,
            "help" => entry.help = value,
            "labels" => entry.labels = keys(value),
            "buckets" => entry.buckets = value,
            _ => {}
        }
    }
    entries
}

/// The keys of a table on one line.
fn keys(table: &str) -> Vec<&str> {
    let inside = table.trim_start_matches('{').trim_end_matches('}');
    inside.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.trim())).collect()
}

/// `postrider.attempt.duration` as `AttemptDuration`.
fn variant(name: &str) -> String {
    let words = name.split(['.', '_']).skip(1);
    words.flat_map(|word| word[..1].to_uppercase().chars().chain(word[1..].chars()).collect::<Vec<_>>()).collect()
}

fn rust(entries: &[Entry<'_>]) -> Result<String, Box<dyn Error>> {
    let (mut names, mut table) = (String::new(), String::new());
    for one in entries {
        let Entry { name, kind, unit, help, labels, buckets } = one;
        let kind = match *kind {
            "counter" => "Counter",
            "gauge" => "Gauge",
            "histogram" => "Histogram",
            other => return Err(format!("{name}: `{other}` is no kind of instrument").into()),
        };
        let buckets = if buckets.is_empty() { "[]" } else { buckets };
        writeln!(names, "    {},", variant(name))?;
        writeln!(
            table,
            "    Instrument {{ name: {name:?}, kind: InstrumentKind::{kind}, unit: {unit}, help: {help}, labels: &{labels:?}, buckets: &{buckets} }},"
        )?;
    }
    Ok(format!(
        "/// Instruments by what they tell.\n#[derive(Debug, Clone, Copy, PartialEq, Eq)]\n#[expect(missing_docs, reason = \"the table says what each of them tells\")]\npub enum Name {{\n{names}}}\n\n\
         /// All instruments, in the order of [`Name`].\npub const INSTRUMENTS: &[Instrument] = &[\n{table}];\n"
    ))
}
