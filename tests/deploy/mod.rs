//! What operators deploy: each file of `examples/deploy`, the Dockerfile, and the metrics that dashboards and alerts
//! read.
//!
//! `files`, `image` and `package` read the files as their tools would, and `agreement` compares them with each other and
//! with the gateway. `languages` compares the pages of both languages. `metrics` runs the queries of dashboard and alerts
//! in a real Prometheus, against a real gateway. `access` grants what the ACL files grant, and no more, and `redis_sizes`
//! measures what inboxes take. `make deploy-check` runs the tools that take longer.

mod access;
mod agreement;
mod files;
mod image;
mod languages;
mod metrics;
mod package;
mod promql;
mod redis_sizes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::repository;

/// A file of `examples/deploy`.
fn deployed(path: &str) -> PathBuf {
    repository("examples/deploy").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A YAML file as JSON, with its merge keys applied.
fn yaml(path: &Path) -> Value {
    let mut value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Twice: what is merged may itself merge something.
    for _ in 0..2 {
        value.apply_merge().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    serde_json::to_value(value).expect("keys are text")
}

/// Runs the gateway's binary.
fn halley(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halley"))
        .args(args)
        .env_remove("HALLEY_CONFIG")
        .output()
        .expect("it runs")
}

/// Checks a configuration, and returns what it says.
///
/// # Panics
/// If it has a mistake.
fn check(config: &str) -> String {
    let folder = crate::support::folder("check");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, config).expect("a temporary file can be written");
    let checked = halley(&["check", "--config", &file.display().to_string()]);
    assert!(checked.status.success(), "{}\n{config}", String::from_utf8_lossy(&checked.stderr));
    String::from_utf8_lossy(&checked.stdout).into_owned()
}

/// The texts of a JSON value under this key, anywhere.
fn texts_under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| texts_under(item, key, found)),
        Value::Object(entries) => {
            found.extend(entries.get(key).and_then(Value::as_str));
            entries.values().for_each(|value| texts_under(value, key, found));
        }
        _ => {}
    }
}

/// All files below a folder, relative to it.
fn below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root).expect("below").display().to_string());
            }
        }
    }
    found
}
