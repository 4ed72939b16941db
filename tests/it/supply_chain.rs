//! What is passed on with the binary, and what its dependencies are held to.

use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

use postrider_tests::process;

const LIMIT: Duration = Duration::from_secs(240);

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn notices(arguments: &[&str]) -> String {
    let script = root().join("deploy/third-party-notices.sh");
    process::run(&script.display().to_string(), arguments, &[], LIMIT).unwrap()
}

/// The image's platform: the sources for others are not fetched.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Name and version of each crate that ours need to run, and of those that these need, as far as Cargo's own metadata names them without a choice.
fn direct() -> BTreeSet<String> {
    let done = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", PLATFORM])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let ours = ["postrider-schemas", "postrider-producer", "postrider-workers"];
    let packages = metadata["packages"].as_array().unwrap();
    let package = |id: &str| packages.iter().find(|one| one["id"] == id).unwrap();
    let mut found = BTreeSet::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        if !ours.contains(&package(node["id"].as_str().unwrap())["name"].as_str().unwrap()) {
            continue;
        }
        for dep in node["deps"].as_array().unwrap() {
            let is_normal = dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
            let package = package(dep["pkg"].as_str().unwrap());
            if is_normal && !package["source"].is_null() {
                found.insert(format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap()));
            }
        }
    }
    found
}

#[test]
fn the_notices_cover_every_crate_of_the_binary_with_its_text() {
    let (list, text) = (notices(&["--list"]), notices(&[]));
    let listed: BTreeSet<String> = list.lines().map(str::to_owned).collect();
    let direct = direct();
    assert!(direct.len() > 40 && direct.is_subset(&listed), "{:?}", direct.difference(&listed));
    assert!(listed.len() > 250, "{}", listed.len());
    let line = "=".repeat(80);
    let sections: Vec<&str> = text.split(&format!("\n{line}\n")).collect();
    for one in &listed {
        let section = sections.iter().find(|section| section.starts_with(&format!("{one}\n")));
        let section = section.unwrap_or_else(|| panic!("no notice of {one}"));
        assert!(section.contains("\n--- ") || section.contains("stands at the end"), "{one} without a text: {section}");
    }
    assert!(text.contains("Apache License, Version 2.0\n") && text.ends_with("SOFTWARE.\n"));
}

#[test]
fn the_image_ships_the_notices() {
    let text = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    assert!(text.contains("deploy/third-party-notices.sh > /image/usr/share/doc/postrider/THIRD-PARTY-NOTICES.txt"));
    let context = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    for needed in ["!deploy/third-party-notices.sh", "!LICENSE-APACHE", "!LICENSE-MIT"] {
        assert!(context.contains(needed), "{needed}");
    }
}

#[test]
fn a_check_that_cannot_be_made_is_said_loudly_and_fails_where_it_is_required() {
    let without_deny = |required: &str| {
        Command::new(root().join(".ci/supply-chain"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("POSTRIDER_SUPPLY_CHAIN", required)
            .output()
            .unwrap()
    };
    let (said, required) = (without_deny(""), without_deny("required"));
    assert!(String::from_utf8_lossy(&said.stderr).contains("NOT CHECKED"), "{said:?}");
    assert_eq!((said.status.success(), required.status.success()), (true, false));
}
