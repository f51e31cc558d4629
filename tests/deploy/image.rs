//! The Dockerfile and its context. No container engine runs here: `make deploy-check` has hadolint.

use std::collections::BTreeSet;
use std::process::Command;

use super::{below, halley, read};
use crate::support::{folder, repository};

/// The instructions of the Dockerfile, without comments, with joined lines.
pub(super) fn dockerfile() -> Vec<(String, String)> {
    let text = read(&repository("Dockerfile"));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let instruction =
        |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    joined.lines().filter_map(instruction).collect()
}

/// Whether `.dockerignore`, read from its end, keeps a path of the repository in the build's context.
fn in_context(path: &str) -> bool {
    let text = read(&repository(".dockerignore"));
    let mut rules =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>();
    rules.reverse();
    let matches = |pattern: &str| match pattern.strip_prefix("**/") {
        Some(name) => path.split('/').any(|part| part == name),
        None => pattern == "*" || path == pattern || path.starts_with(&format!("{pattern}/")),
    };
    let last = rules.iter().find(|rule| matches(rule.trim_start_matches('!')));
    last.is_none_or(|rule| rule.starts_with('!'))
}

/// What follows each instruction of this name.
fn all<'a>(instructions: &'a [(String, String)], word: &'a str) -> impl Iterator<Item = &'a str> {
    instructions.iter().filter(move |(found, _)| found == word).map(|(_, rest)| rest.as_str())
}

#[test]
fn base_images_are_pinned_and_the_last_is_not_root() {
    let instructions = dockerfile();
    let stages: BTreeSet<&str> =
        all(&instructions, "FROM").filter_map(|from| Some(from.split_once(" AS ")?.1)).collect();
    for from in all(&instructions, "FROM") {
        let image = from.split_once(" AS ").expect("each stage has a name").0;
        let is_pinned = image.split_once(':').is_some_and(|(_, tag)| !tag.starts_with("latest"));
        assert!(is_pinned || stages.contains(image) || image == "scratch", "{image}");
    }
    let manifest: toml::Table = toml::from_str(&read(&repository("Cargo.toml"))).expect("TOML");
    let rust = format!("rust:{}-", manifest["package"]["rust-version"].as_str().expect("a version"));
    assert!(all(&instructions, "FROM").any(|from| from.starts_with(&rust)), "the image of Rust is {rust}");

    let last = instructions.iter().rposition(|(word, _)| word == "FROM").expect("a stage");
    let gateway = |word: &str| all(&instructions[last..], word).next().unwrap_or_default().to_owned();
    assert!(gateway("FROM").ends_with(" AS gateway"), "the last stage is the gateway");
    let user = gateway("USER");
    let is_number = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
    assert!(user.split(':').all(is_number), "Kubernetes needs a number: {user}");
    assert!(gateway("HEALTHCHECK").ends_with(r#"CMD ["/usr/bin/halley", "health"]"#));
    assert!(halley(&["health", "--help"]).status.success());
}

#[test]
fn the_context_has_what_the_build_needs_and_little_else() {
    let instructions = dockerfile();
    // All words but the last are sources.
    let copies = all(&instructions, "COPY").filter(|copy| !copy.starts_with("--from"));
    let sources: Vec<&str> = copies.flat_map(|copy| copy.split(' ').rev().skip(1)).collect();
    assert!(sources.len() >= 10, "{sources:?}");
    for path in &sources {
        assert!(repository(path).exists() && in_context(path), ".dockerignore leaves out {path}");
    }
    // What the compiler reads from elsewhere must have been copied as well.
    for file in below(&repository("host")) {
        let path = repository("host").join(&file);
        for line in read(&path).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let Some((_, rest)) = line.split_once("include_str!(\"") else { continue };
            let named = rest.split('"').next().expect("a name");
            let target = path.parent().expect("a folder").join(named).canonicalize().expect("it exists");
            let target = target.strip_prefix(repository("")).expect("ours").display().to_string();
            let is_copied = in_context(&target) && sources.iter().any(|source| target.starts_with(source));
            let is_of_a_test = target.starts_with("tests/") || target.starts_with("README");
            assert!(is_copied || is_of_a_test, "{file}: {target}");
        }
    }
    for path in
        ["host/lib.rs", "plugins/languages/python/README.md", "plugins/build.sh", "examples/comet.html"]
    {
        assert!(in_context(path), "{path}");
    }
    for path in
        [".git/HEAD", "target/x", "plugins/target/x", "plugins/dist/x.wasm", ".cache/x", "tests/main.rs"]
    {
        assert!(!in_context(path), "{path}");
    }
}

#[test]
fn cargo_accepts_the_folder_that_the_image_is_built_in() {
    let context = folder("context");
    for path in ["Cargo.toml", "Cargo.lock", "build.rs", "proto", "host", "wit", "examples"] {
        let copied = Command::new("cp").arg("-r").arg(repository(path)).arg(context.path()).status();
        assert!(copied.is_ok_and(|status| status.success()), "{path}");
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]);
    let output = command.current_dir(context.path()).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
