//! The SDK for plugin authors, as of the build of this binary. New projects contain a copy, so that
//! they need no repository and match this gateway.

use std::path::Path;

use crate::cli::common::write;

/// The crate's name, and its directory in a project.
pub(super) const NAME: &str = "halley-plugin";

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../../../plugins/sdk/", $path)))),*]
    };
}

/// Its files, by their paths in `plugins/sdk`.
const SOURCES: [(&str, &str); 18] = sources![
    "src/batch.rs",
    "src/bindings.rs",
    "src/comet.rs",
    "src/export.rs",
    "src/filter.rs",
    "src/grouping.rs",
    "src/host.rs",
    "src/lib.rs",
    "src/message.rs",
    "src/offline.rs",
    "src/policy.rs",
    "src/retention.rs",
    "src/room.rs",
    "src/scope.rs",
    "src/settings.rs",
    "src/testing/build.rs",
    "src/testing/mod.rs",
    "src/testing/stand_in.rs",
];
const MANIFEST: &str = include_str!("../../../../plugins/sdk/Cargo.toml");
/// The workspace that the manifest inherits from.
const WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");
pub(super) const CONTRACT: &str = include_str!("../../../../wit/policy.wit");

/// Writes the SDK into a directory of this project.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_into(project: &Path) -> anyhow::Result<()> {
    let folder = project.join(NAME);
    for (path, text) in SOURCES {
        // The copy contains the contract, which is elsewhere in the repository.
        write(&folder.join(path), &text.replace("path: \"../../wit\"", "path: \"wit\""))?;
    }
    write(&folder.join("Cargo.toml"), &standalone(MANIFEST, WORKSPACE))?;
    write(&folder.join("wit/policy.wit"), CONTRACT)
}

/// A manifest that inherits nothing: workspace values are inlined, and sections for the SDK's own
/// tests and lints are removed.
fn standalone(manifest: &str, workspace: &str) -> String {
    let mut lines = Vec::new();
    for section in sections(manifest) {
        let (head, rest) = section.split_once('\n').unwrap_or((section, ""));
        if head == "[dev-dependencies]" || head == "[lints]" {
            continue;
        }
        lines.push(head);
        lines.extend(rest.lines().map(|line| {
            let inherited = line.strip_suffix(".workspace = true");
            inherited.and_then(|key| definition(workspace, key)).unwrap_or(line)
        }));
    }
    let text = lines.join("\n");
    format!("{}\n", text.trim_end())
}

fn sections(manifest: &str) -> impl Iterator<Item = &str> {
    let begins = manifest.match_indices("\n[").map(|(at, _)| at + 1);
    let begins: Vec<usize> = std::iter::once(0).chain(begins).collect();
    let ends: Vec<usize> = begins.iter().skip(1).copied().chain([manifest.len()]).collect();
    begins.into_iter().zip(ends).map(|(begin, end)| &manifest[begin..end])
}

/// The line of the workspace that defines a key.
fn definition<'a>(workspace: &'a str, key: &str) -> Option<&'a str> {
    workspace.lines().find(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn files(folder: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.insert(path);
            }
        }
    }

    #[test]
    fn every_sdk_file_is_embedded() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/sdk");
        let mut found = BTreeSet::new();
        files(&sdk.join("src"), &mut found);
        assert_eq!(found, SOURCES.iter().map(|(path, _)| sdk.join(path)).collect());
    }

    #[test]
    fn sdk_manifest_inherits_nothing() {
        let manifest = standalone(MANIFEST, WORKSPACE);
        let parsed: toml::Table = manifest.parse().unwrap();
        assert!(!manifest.contains("workspace") && !parsed.contains_key("dev-dependencies"), "{manifest}");
        assert_eq!(parsed["package"]["name"].as_str(), Some(NAME));
        assert_eq!(parsed["package"]["edition"].as_str(), Some("2024"));
        let dependencies: Vec<_> = parsed["dependencies"].as_table().unwrap().keys().cloned().collect();
        assert_eq!(dependencies, ["schemars", "serde", "serde_json", "serde_path_to_error", "wit-bindgen"]);
    }

    #[test]
    fn sdk_bindings_use_the_copied_contract() {
        let project = tempfile::tempdir().unwrap();
        write_into(project.path()).unwrap();
        let bindings = fs::read_to_string(project.path().join("halley-plugin/src/bindings.rs")).unwrap();
        assert!(bindings.contains("path: \"wit\"") && !bindings.contains("../.."));
        assert!(project.path().join("halley-plugin/wit/policy.wit").is_file());
    }
}
