//! Checks the allowed dependencies: between modules, between the parts of `policy`, and on foreign
//! types. Also checks that there are no cycles between files.

mod errors;
mod names;
mod plan;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use plan::{ALLOWED_DEPENDENCIES, COMMON, CONFINED_CRATES, PARTS_OF_POLICY};

#[test]
fn modules_depend_only_on_allowed_modules() {
    let mut strangers = BTreeSet::new();
    for (file, module, text) in sources() {
        let Some((_, allowed)) = ALLOWED_DEPENDENCIES.iter().find(|(name, _)| *name == module) else {
            strangers.insert(format!("{}: module `{module}` is not in ALLOWED_DEPENDENCIES", file.display()));
            continue;
        };
        for known in names_after(&text, "crate::") {
            let is_module = ALLOWED_DEPENDENCIES.iter().any(|(name, _)| *name == known);
            if is_module
                && known != module
                && !COMMON.contains(&known.as_str())
                && !allowed.contains(&known.as_str())
            {
                strangers.insert(format!("{}: `{module}` may not depend on `{known}`", file.display()));
            }
        }
    }
    assert!(strangers.is_empty(), "tests/layers/plan.rs says otherwise:\n{strangers:#?}");
}

#[test]
fn foreign_types_stay_in_their_module() {
    let mut escaped = BTreeSet::new();
    for (file, module, text) in sources() {
        for (foreign, rooms) in CONFINED_CRATES {
            if rooms.contains(&module.as_str()) || !text.contains(&format!("{foreign}::")) {
                continue;
            }
            if text.lines().any(|line| mentions(line, foreign)) {
                escaped.insert(format!("{}: `{foreign}` belongs to {rooms:?}", file.display()));
            }
        }
    }
    assert!(escaped.is_empty(), "{escaped:#?}");
}

/// Calls that open or write files. Only `files` may read files; the authors' commands and the demo may
/// write.
const READS: [&str; 5] = ["fs::read(", "fs::read_to_string(", "File::open(", "OpenOptions", "tokio::fs"];
const WRITES: [&str; 4] = ["fs::write(", "File::create(", "File::create_new(", "File::options("];

#[test]
fn files_are_opened_in_one_module() {
    let mut escaped = BTreeSet::new();
    for (file, module, text) in sources() {
        let in_tests = file.components().any(|part| part.as_os_str().to_string_lossy().contains("tests"));
        if module == "files" || module == "fuzzing" || in_tests {
            continue;
        }
        let code = text.split("mod tests {").next().unwrap_or_default();
        let forbidden = READS.iter().chain(WRITES.iter().filter(|_| module != "cli"));
        for word in forbidden.filter(|word| code.contains(**word)) {
            escaped.insert(format!("{}: `{word}`; use `crate::files`", file.display()));
        }
    }
    assert!(escaped.is_empty(), "{escaped:#?}");
}

#[test]
fn allowed_dependencies_have_no_cycle() {
    fn visit(module: &str, path: &mut Vec<String>) {
        assert!(!path.iter().any(|seen| seen == module), "a cycle: {path:?} -> {module}");
        path.push(module.to_owned());
        let known =
            ALLOWED_DEPENDENCIES.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, known)| known);
        known.iter().for_each(|known| visit(known, path));
        path.pop();
    }
    for (module, _) in ALLOWED_DEPENDENCIES {
        visit(module, &mut Vec::new());
    }
}

#[test]
fn the_parts_of_policy_know_only_whom_the_plan_allows() {
    let part = |file: &str| PARTS_OF_POLICY.iter().find(|(part, _)| file.starts_with(part));
    let mut strangers = BTreeSet::new();
    for (from, known) in edges() {
        let Some(file) = from.strip_prefix("policy/").filter(|file| *file != "mod.rs") else { continue };
        let Some((_, allowed)) = part(file) else {
            strangers.insert(format!("{from} is not in PARTS_OF_POLICY"));
            continue;
        };
        for (to, name) in known {
            let inside = to.strip_prefix("policy/");
            let is_allowed = |to: &str| allowed.iter().any(|part| to.starts_with(part));
            let is_operator = inside.is_some_and(|to| to.starts_with("rollout/operator"));
            if inside.is_some_and(|to| !is_allowed(to) || is_operator) {
                strangers.insert(format!("{from} may not depend on {to}, and names {name}"));
            }
        }
    }
    assert!(strangers.is_empty(), "dependencies that tests/layers/plan.rs does not allow:\n{strangers:#?}");
}

#[test]
fn no_files_know_each_other_in_a_circle() {
    let cycles = names::cycles(&edges());
    assert!(cycles.is_empty(), "cycles between files:\n{}", cycles.join("\n"));
}

#[test]
fn a_planted_circle_is_found_with_its_chain() {
    let sources = |files: &[(&str, &str)]| -> names::Sources {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    let planted = sources(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::{self, Door};\nfn go() { b::Door::open(\"crate::c::Other\"); }"),
        ("b/mod.rs", "//! use crate::a::go;\nmod inner;\npub use inner::Door;\npub(crate) struct Plain;"),
        ("b/inner.rs", "use super::super::c;\npub struct Door; // crate::a\nfn f() { c::call() }"),
        ("c.rs", "pub fn call() { crate::a::go() }\n#[cfg(test)]\nmod tests { use crate::b::Plain; }"),
    ]);
    let cycles = names::cycles(&names::edges(&planted));
    let expected = "a.rs\n    names crate::b::Door of b/inner.rs\n    names c::call of c.rs\n    \
                    names crate::a::go of a.rs";
    assert_eq!(cycles, [expected]);

    // A parent that re-exports names of a child that uses the parent is not a cycle; a parent that
    // uses these names itself is.
    let family = |uses: &str| {
        let parent = format!("mod child; pub use child::Child; pub struct Parent {{ {uses} }}");
        let files =
            [("lib.rs", "mod p;"), ("p.rs", &*parent), ("p/child.rs", "pub struct Child(super::Parent);")];
        names::cycles(&names::edges(&sources(&files))).len()
    };
    assert_eq!((family(""), family("child: Box<Child>")), (0, 1));
    let tests = "#[cfg(any(test, feature = \"x\"))] mod check; pub struct P; #[cfg(test)] use check::run;";
    let files = [("lib.rs", "mod p;"), ("p.rs", tests), ("p/check.rs", "use super::P; pub fn run(_: P) {}")];
    assert_eq!(names::cycles(&names::edges(&sources(&files))), [""; 0]);
}

/// The edges among the files of `host/`.
fn edges() -> names::Edges {
    static EDGES: LazyLock<names::Edges> = LazyLock::new(|| names::edges(&texts()));
    EDGES.clone()
}

/// The sources of `host/` by path, as `names` takes them.
fn texts() -> names::Sources {
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("host");
    let mut files = Vec::new();
    collect(&host, &mut files);
    let named = files.into_iter().map(|file| {
        let name = file.strip_prefix(&host).expect("inside").to_str().expect("UTF-8").to_owned();
        (name, fs::read_to_string(&file).expect("readable"))
    });
    named.filter(|(name, _)| name != "main.rs").collect()
}

#[test]
fn every_file_has_module_docs() {
    let silent: Vec<_> =
        sources().filter(|(_, _, text)| !text.starts_with("//!")).map(|(file, ..)| file).collect();
    assert!(silent.is_empty(), "files that do not open with `//!`: {silent:?}");
}

/// All files of `host/` with the top-level module that they belong to.
fn sources() -> impl Iterator<Item = (PathBuf, String, String)> {
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("host");
    let mut files = Vec::new();
    collect(&host, &mut files);
    files.into_iter().filter_map(move |file| {
        let inside = file.strip_prefix(&host).expect("inside");
        let module = inside.iter().next()?.to_str()?.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&file).expect("readable");
        let root = module == "lib" || module == "main";
        (!root).then(|| (PathBuf::from("host").join(inside), module, text))
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The names that follow a prefix, also in `use crate::{a, b::c}`.
fn names_after(text: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = &group[..group.find(';').unwrap_or(group.len())];
            let mut depth = 0;
            for part in group.split_inclusive([',', '{', '}']) {
                if depth == 0 {
                    names.insert(identifier(part.trim()));
                }
                depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
            }
        } else {
            names.insert(identifier(rest));
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether a line of code names a crate: `use redis::`, `::redis::`, `redis::Value`.
fn mentions(line: &str, foreign: &str) -> bool {
    if line.trim_start().starts_with("//") {
        return false;
    }
    line.match_indices(&format!("{foreign}::")).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let path = line[..at].ends_with("crate::") || line[..at].ends_with("self::");
        !path && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}
