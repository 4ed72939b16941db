//! What must not stand where: the pure room stays pure, and a vendor's crate stays in its room.

mod imports;

use std::{fs, path::Path};

/// Every Rust file below a folder of the repository, with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no source");
    found
}

/// The code of a file: no comments, no tests.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_absent(folder: &str, words: &[&str], allowed: &[&str]) {
    for (path, text) in sources(folder) {
        if path.ends_with("tests.rs") || allowed.iter().any(|room| path.contains(room)) {
            continue;
        }
        for word in words {
            assert!(!code(&text).contains(word), "{path} names `{word}`");
        }
    }
}

#[test]
fn decisions_are_pure() {
    let words = [
        "async ",
        ".await",
        "tokio",
        "lapin",
        "redis::",
        "lettre",
        "rusqlite",
        "reqwest",
        "hickory",
        "opentelemetry",
        "::now()",
        "SystemTime",
        "Instant",
        "std::fs",
        "std::net",
    ];
    assert_absent("workers/policy/src", &words, &[]);
    assert_absent("workers/providers/src", &words, &[]);
}

#[test]
fn what_people_see_passes_one_edge() {
    // Text of others is escaped, and secrets are taken out, in these two places alone. A rendering process speaks to its worker, not to people.
    let words = ["println!", "print!", "io::stdout()", "io::stderr()", "std::io::stderr"];
    assert_absent("workers/src", &words, &["/cli/output.rs", "/telemetry/logs.rs", "/render/"]);
    assert_absent("workers/policy/src", &words, &["/rate_limit/simulation.rs"]);
    assert_absent("workers/store/src", &words, &[]);
    assert_absent("workers/providers/src", &words, &[]);
}

#[test]
fn the_schemas_do_no_io() {
    let words = ["async ", "tokio", "lapin", "redis::", "lettre", "rusqlite", "std::fs", "std::net", "::now()"];
    assert_absent("schemas/src", &words, &[]);
}

#[test]
fn the_smtp_session_knows_no_job() {
    let words = ["postrider_policy", "postrider_store", "Job", "Lane", "Outcome", "tracing", "opentelemetry"];
    assert_absent("workers/smtp/src", &words, &[]);
}

#[test]
fn vendor_crates_stay_in_their_rooms() {
    assert_absent(
        "workers/src",
        &["lapin"],
        &["/queue/rabbitmq/", "/queue/mod.rs", "/cli/topology.rs", "/telemetry/logs.rs"],
    );
    assert_absent("workers/src", &["redis::"], &[]);
    assert_absent("workers/store/src", &["redis::"], &["/store/src/redis/", "/store/src/lib.rs"]);
    assert_absent("workers/src", &["lettre::"], &["/message/", "/transport/smtp/mod.rs"]);
    assert_absent("workers/src", &["rusqlite"], &["/queue/embedded/"]);
    assert_absent("workers/store/src", &["rusqlite"], &["/store/src/embedded"]);
    assert_absent("workers/src", &["reqwest"], &["/transport/provider/client.rs", "/telemetry/logs.rs"]);
    assert_absent("workers/src", &["hickory"], &["/dns/resolver.rs", "/telemetry/logs.rs"]);
    assert_absent("workers/src", &["opentelemetry"], &["/telemetry/"]);
    assert_absent("producer/src", &["lapin"], &["/rabbitmq/"]);
    assert_absent("producer/src", &["rusqlite"], &["/embedded/"]);
}
