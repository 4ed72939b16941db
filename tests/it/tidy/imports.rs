//! Imports have one direction. Within each folder the modules form no circle, each taken together with what is below it; a module's own file is
//! the face of its folder, and may use its children as they may use it. Inside the workers, imports follow the order of ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The order of the modules of `workers/src`: each may import from its own line and from those below it.
const ORDER: [&[&str]; 8] = [
    &["cli"],
    &["worker", "descriptors"],
    &["delivery"],
    &[
        "admin",
        "circuit_breakers",
        "concurrency",
        "mail_catcher",
        "message",
        "pending_receipts",
        "rate_limit",
        "render",
        "transport",
    ],
    &["telemetry"],
    &["dns", "queue"],
    &["config"],
    &["escape", "memory"],
];

/// A module, as the names that lead to it from the root of its crate.
type Module = Vec<String>;

/// One file uses something of another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: Module,
    to: Module,
}

/// The files of a crate, and who uses whom.
struct Imports {
    files: BTreeMap<Module, String>,
    list: BTreeSet<Import>,
}

/// What a file says about modules.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// Paths that begin with `crate`, `self` or `super`, or with a child of the module.
    paths: BTreeSet<Vec<String>>,
    /// Children that only tests have.
    test_children: BTreeSet<String>,
}

impl Imports {
    /// By the paths of files below `src`, with their texts.
    fn of(sources: &[(String, String)]) -> Self {
        let mut files: BTreeMap<Module, String> = BTreeMap::new();
        let mut said = BTreeMap::new();
        for (path, text) in sources {
            if path.ends_with("tests.rs") || path == "main.rs" {
                continue;
            }
            let module = module_of(path);
            said.insert(module.clone(), read(text));
            files.insert(module, path.clone());
        }
        let of_tests: Vec<Module> = said
            .iter()
            .flat_map(|(module, said)| said.test_children.iter().map(|child| joined(module, child)))
            .collect();
        files.retain(|module, _| !of_tests.iter().any(|test| module.starts_with(test)));
        let mut list = BTreeSet::new();
        for from in files.keys() {
            for path in &said[from].paths {
                let mut to = absolute(from, path);
                while !files.contains_key(&to) && to.pop().is_some() {}
                if to != *from {
                    list.insert(Import { from: from.clone(), to });
                }
            }
        }
        Self { files, list }
    }

    fn of_folder(folder: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
        let mut sources = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(&root).unwrap().display().to_string();
                    sources.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        assert!(!sources.is_empty(), "{folder} holds no source");
        Self::of(&sources)
    }

    fn file(&self, module: &Module) -> &str {
        self.files.get(module).map_or("?", String::as_str)
    }

    fn shown(&self, import: &Import) -> String {
        format!("{} imports from {}", self.file(&import.from), self.file(&import.to))
    }

    /// A circle of each folder that has one: its imports.
    fn circles(&self) -> Vec<Vec<String>> {
        let mut folders: BTreeMap<Module, BTreeMap<String, BTreeMap<String, Import>>> = BTreeMap::new();
        for import in &self.list {
            let common = import.from.iter().zip(&import.to).take_while(|(a, b)| a == b).count();
            // Between a module's file and what is below it.
            let (Some(from), Some(to)) = (import.from.get(common), import.to.get(common)) else { continue };
            let folder = folders.entry(import.from[..common].to_vec()).or_default();
            folder.entry(from.clone()).or_default().entry(to.clone()).or_insert_with(|| import.clone());
        }
        folders
            .values()
            .filter_map(circle)
            .map(|circle| circle.iter().map(|import| self.shown(import)).collect())
            .collect()
    }

    /// Imports that go up in this order, and modules that it does not know.
    fn against(&self, order: &[&[&str]]) -> Vec<String> {
        let level = |module: &Module| {
            let name = module.first()?;
            order.iter().position(|line| line.contains(&name.as_str()))
        };
        let mut wrong: Vec<String> = self
            .files
            .iter()
            .filter(|(module, _)| !module.is_empty() && level(module).is_none())
            .map(|(_, file)| format!("{file} is in no line of the order"))
            .collect();
        let up =
            self.list.iter().filter(|one| matches!((level(&one.from), level(&one.to)), (Some(a), Some(b)) if a > b));
        wrong.extend(up.map(|import| self.shown(import)));
        wrong
    }
}

fn module_of(path: &str) -> Module {
    let mut names: Module = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| name == "mod") || names == ["lib"] {
        names.pop();
    }
    names
}

fn joined(module: &Module, child: &str) -> Module {
    let mut joined = module.clone();
    joined.push(child.to_owned());
    joined
}

/// A path as it is written in a module, from the root of the crate.
fn absolute(module: &Module, path: &[String]) -> Module {
    let mut at = match path.first().map(String::as_str) {
        Some("crate") => Module::new(),
        _ => module.clone(),
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(at.pop()),
            name => at.push(name.to_owned()),
        }
    }
    at
}

/// A circle in a graph, as the imports that make it.
fn circle(graph: &BTreeMap<String, BTreeMap<String, Import>>) -> Option<Vec<Import>> {
    fn search<'a>(
        graph: &'a BTreeMap<String, BTreeMap<String, Import>>,
        at: &'a str,
        way: &mut Vec<(&'a str, &'a Import)>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<Import>> {
        for (to, import) in graph.get(at).into_iter().flatten() {
            way.push((at, import));
            if let Some(start) = way.iter().position(|(name, _)| name == to) {
                return Some(way[start..].iter().map(|(_, import)| (*import).clone()).collect());
            }
            if !done.contains(to.as_str())
                && let Some(found) = search(graph, to, way, done)
            {
                return Some(found);
            }
            way.pop();
        }
        done.insert(at);
        None
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| search(graph, start, &mut Vec::new(), &mut done))
}

/// Names, `::` and single signs of a source, without comments, texts and what only tests have.
fn tokens(text: &str) -> Vec<String> {
    let signs: Vec<char> = text.chars().collect();
    let (mut out, mut n) = (Vec::new(), 0);
    while n < signs.len() {
        let rest = &signs[n..];
        if rest.starts_with(&['/', '/']) {
            n += rest.iter().position(|sign| *sign == '\n').unwrap_or(rest.len());
        } else if rest[0] == '"' {
            n += 1;
            while n < signs.len() && signs[n] != '"' {
                n += if signs[n] == '\\' { 2 } else { 1 };
            }
            n += 1;
        } else if rest[0] == 'r' && rest.get(1).is_some_and(|sign| matches!(sign, '"' | '#')) && raw_end(rest).is_some()
        {
            n += raw_end(rest).unwrap_or(1);
        } else if rest.len() > 3 && rest[0] == '\'' && (rest[1] == '\\' || rest[2] == '\'') {
            n += 2 + usize::from(rest[1] == '\\');
            n += signs[n..].iter().position(|sign| *sign == '\'').map_or(1, |at| at + 1);
        } else if rest[0].is_alphanumeric() || rest[0] == '_' {
            let end = rest.iter().position(|sign| !sign.is_alphanumeric() && *sign != '_').unwrap_or(rest.len());
            out.push(rest[..end].iter().collect());
            n += end;
        } else if rest.starts_with(&[':', ':']) {
            out.push("::".to_owned());
            n += 2;
        } else {
            if !rest[0].is_whitespace() {
                out.push(rest[0].to_string());
            }
            n += 1;
        }
    }
    out
}

/// Where a raw text ends that begins here.
fn raw_end(rest: &[char]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|sign| **sign == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = 2 + hashes;
    rest[body..].windows(end.len()).position(|window| window == end).map(|at| body + at + end.len())
}

/// Reads a source.
fn read(text: &str) -> Said {
    let tokens = tokens(text);
    let is = |n: usize, wanted: &str| tokens.get(n).is_some_and(|token| token == wanted);
    let mut said = Said::default();
    let children: BTreeSet<&String> =
        tokens.windows(3).filter(|three| three[0] == "mod" && three[2] == ";").map(|three| &three[1]).collect();
    let mut n = 0;
    while n < tokens.len() {
        if ["#", "[", "cfg", "(", "test", ")", "]"].iter().enumerate().all(|(at, wanted)| is(n + at, wanted)) {
            let end = item_end(&tokens, n + 7);
            if let Some(at) = (n + 7..end).find(|at| is(*at, "mod") && is(at + 2, ";")) {
                said.test_children.insert(tokens[at + 1].clone());
            }
            n = end;
        } else if tokens[n] == "use" {
            n = tree(&tokens, n + 1, &[], &children, &mut said.paths);
        } else if is(n + 1, "::") && !(n > 0 && is(n - 1, "::")) {
            let mut path = vec![tokens[n].clone()];
            while is(n + 1, "::") && tokens.get(n + 2).is_some_and(|name| name.starts_with(char::is_alphanumeric)) {
                path.push(tokens[n + 2].clone());
                n += 2;
            }
            add(path, &children, &mut said.paths);
            n += 1;
        } else {
            n += 1;
        }
    }
    said
}

/// The end of an item: behind its block, or behind its semicolon where it has none.
fn item_end(tokens: &[String], from: usize) -> usize {
    let mut depth = 0_usize;
    for (n, token) in tokens.iter().enumerate().skip(from) {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return n + 1,
            "}" => depth = depth.saturating_sub(1),
            ";" if depth == 0 => return n + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Reads a tree of imports; gives where it ends.
fn tree(
    tokens: &[String],
    from: usize,
    before: &[String],
    children: &BTreeSet<&String>,
    paths: &mut BTreeSet<Vec<String>>,
) -> usize {
    let (mut path, mut n) = (before.to_vec(), from);
    while n < tokens.len() {
        match tokens[n].as_str() {
            "::" => {}
            "{" => loop {
                n = tree(tokens, n + 1, &path, children, paths);
                match tokens.get(n).map(String::as_str) {
                    Some(",") => {}
                    _ => return n + 1,
                }
            },
            "," | "}" | ";" => {
                if path.len() > before.len() {
                    add(path, children, paths);
                }
                return n;
            }
            // A new name for it.
            "as" => n += 1,
            name => path.push(name.to_owned()),
        }
        n += 1;
    }
    n
}

fn add(path: Vec<String>, children: &BTreeSet<&String>, paths: &mut BTreeSet<Vec<String>>) {
    let is_here = path
        .first()
        .is_some_and(|first| matches!(first.as_str(), "crate" | "self" | "super") || children.contains(first));
    if is_here {
        paths.insert(path);
    }
}

#[test]
fn no_module_imports_itself_by_way_of_others() {
    for folder in [
        "schemas/src",
        "producer/src",
        "producer/gateway/src",
        "workers/policy/src",
        "workers/providers/src",
        "workers/smtp/src",
        "workers/store/src",
        "workers/src",
    ] {
        let circles = Imports::of_folder(folder).circles();
        assert!(circles.is_empty(), "{folder} has circles of imports: {circles:#?}");
    }
}

#[test]
fn imports_of_the_workers_follow_the_order_of_the_architecture() {
    let wrong = Imports::of_folder("workers/src").against(&ORDER);
    assert!(wrong.is_empty(), "against the order of ARCHITECTURE.md: {wrong:#?}");
}

/// A crate of two folders: `high` may import from `low`.
fn crate_of(files: &[(&str, &str)]) -> Imports {
    let sources: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    Imports::of(&sources)
}

#[test]
fn a_circle_is_found_and_both_files_are_named() {
    let imports = crate_of(&[
        ("lib.rs", "mod high; mod low;"),
        ("high/mod.rs", "mod a; mod b; pub use self::a::A;"),
        ("high/a.rs", "use std::fmt;\nuse crate::{high::b::{B, C}, low};\npub struct A(B);"),
        ("high/b.rs", "pub fn b() { super::a::go(\"use crate::low\") }"),
        ("low.rs", "// use crate::high::a;\n#[cfg(test)]\nmod tests { use crate::high::a; }"),
    ]);
    assert_eq!(imports.circles(), [["high/a.rs imports from high/b.rs", "high/b.rs imports from high/a.rs"]]);
    assert_eq!(imports.against(&[&["high"], &["low"]]), Vec::<String>::new());
    let wrong = imports.against(&[&["low"], &["high"]]);
    assert_eq!(wrong, ["high/a.rs imports from low.rs"]);
    assert_eq!(imports.against(&[&["low"]]).len(), 3, "what the order does not know is named");
}

#[test]
fn a_circle_of_folders_is_found_where_no_two_files_import_each_other() {
    let imports = crate_of(&[
        ("lib.rs", "mod one; mod two;"),
        ("one/mod.rs", "mod a; mod b;"),
        ("one/a.rs", "use crate::two::c;"),
        ("one/b.rs", ""),
        ("two/mod.rs", "pub mod c;"),
        ("two/c.rs", "fn c() { let _ = crate::one::b::x as u8; }"),
    ]);
    assert_eq!(imports.circles(), [["one/a.rs imports from two/c.rs", "two/c.rs imports from one/b.rs"]]);
}

#[test]
fn a_face_and_its_folder_are_no_circle_and_test_files_do_not_count() {
    let imports = crate_of(&[
        ("lib.rs", "mod one; mod two;"),
        ("one/mod.rs", "mod a;\n#[cfg(test)]\nmod server;\nuse self::a::A; fn f() { a::g::<'_>('\"') }"),
        ("one/a.rs", "use super::f;"),
        ("one/server.rs", "use crate::two;"),
        ("two.rs", "use crate::one;"),
        ("two_tests.rs", "use super::one;"),
    ]);
    assert!(imports.circles().is_empty(), "{:?}", imports.circles());
    assert_eq!(imports.list.len(), 3, "{:?}", imports.list);
}
