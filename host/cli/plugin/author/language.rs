//! Projects in languages other than Rust: the repository's example of each language and its build
//! tools, as of the build of this binary.
//!
//! `halley-plugin.toml` in a project names its language and its hooks. The tools of a language are
//! fetched once into `~/.cache/halley`, in pinned versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::LARGEST_INPUT;
use crate::cli::common::write;
use crate::cli::plugin::author::sdk;
use crate::files;

/// Marks a directory as a project in a language other than Rust.
const SETTINGS: &str = "halley-plugin.toml";

/// A language that policies are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Language {
    /// With the SDK; the fastest, and the only one with a template for every hook.
    Rust,
    /// With componentize-js, from npm.
    #[value(name = "javascript")]
    JavaScript,
    /// With componentize-py, from PyPI.
    Python,
    /// With Go 1.25 or newer, wit-bindgen and jco.
    Go,
    /// With clang, wasi-libc and wit-bindgen.
    C,
}

/// `halley-plugin.toml`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectSettings {
    language: Language,
    world: PluginWorld,
}

/// A world of the contract: the hooks that a policy has.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PluginWorld {
    FilterPolicy,
    RetentionPolicy,
    GroupingPolicy,
    OfflinePolicy,
    Policy,
}

macro_rules! files {
    ($($name:literal from $path:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../plugins/languages/", $path)))),*]
    };
}

type FileList = &'static [(&'static str, &'static str)];

/// Files that the build script needs next to it.
const TOOLS: FileList = files![
    "build.sh" from "build.sh",
    "package.json" from "package.json",
    "package-lock.json" from "package-lock.json",
    "component.mjs" from "component.mjs",
];
const JAVASCRIPT: FileList = files!["policy.js" from "javascript/mask_words.js"];
const PYTHON: FileList = files!["policy.py" from "python/mask_words.py"];
const C: FileList = files![
    "policy.c" from "c/mask_words.c",
    "config.c" from "c/config.c",
    "config.h" from "c/config.h",
];
const GO: FileList = files![
    "go.mod" from "go/go.mod",
    "go.sum" from "go/go.sum",
    "mask/mask.go" from "go/mask/mask.go",
    "export_halley_policy_filter/filter.go" from "go/export_halley_policy_filter/filter.go",
    "export_halley_policy_lifecycle/lifecycle.go" from "go/export_halley_policy_lifecycle/lifecycle.go",
];
const CASES: &str = r##"# What the policy answers: `halley plugin test` asks a fresh instance for each case.

# The configuration, where a case has none of its own.
[config]
words = ["spam"]
mask = "#"

[[case]]
name = "words are masked"

[[case.filter]]
message = { room = "video_1", body = "hello" }
expect = "pass"

[[case.filter]]
message = { room = "video_1", body = "buy spam" }
expect = { body = "buy ####" }

[[case]]
name = "a message without a body is dropped"

[[case.filter]]
message = { room = "video_1", body = "" }
expect = { drop = "empty" }

[[case]]
name = "a mistyped key is refused"
config = { wrods = [] }
refused = "unknown field"
"##;
const QUESTIONS: &str =
    "{\"room\": \"video_1\", \"body\": \"hello\"}\n{\"room\": \"video_1\", \"body\": \"buy spam\"}\n";

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::JavaScript => "javascript",
            Self::Python => "python",
            Self::Go => "go",
            Self::C => "c",
        }
    }

    /// The example's files, and notes about the language, one per line.
    fn example(self) -> (FileList, &'static str) {
        match self {
            Self::Rust => (&[], ""),
            Self::JavaScript => {
                (JAVASCRIPT, include_str!("../../../../plugins/languages/javascript/README.md"))
            }
            Self::Python => (PYTHON, include_str!("../../../../plugins/languages/python/README.md")),
            Self::Go => (GO, include_str!("../../../../plugins/languages/go/README.md")),
            Self::C => (C, include_str!("../../../../plugins/languages/c/README.md")),
        }
    }

    /// Writes a project that masks words.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write_project(self, folder: &Path, name: &str) -> anyhow::Result<()> {
        let (files, notes) = self.example();
        for (path, text) in files {
            let text = text.replace(IN_THE_REPOSITORY, "See README.md.");
            write(&folder.join(path), &text)?;
        }
        write(&folder.join(SETTINGS), &settings(self))?;
        write(&folder.join("wit/policy.wit"), sdk::CONTRACT)?;
        write(&folder.join("cases.toml"), CASES)?;
        write(&folder.join("messages.jsonl"), QUESTIONS)?;
        write(&folder.join(".gitignore"), "/target\n/dist\n__pycache__\n")?;
        write(&folder.join("README.md"), &readme(name, notes))
    }
}

/// The build settings of the examples in the repository.
const IN_THE_REPOSITORY: &str = "README.md here says how it is built.";

fn settings(language: Language) -> String {
    format!(
        "# What `halley plugin build` makes of this folder.\nlanguage = \"{}\"\n\
         # Which hooks it has: filter-policy, retention-policy, grouping-policy, offline-policy, or\n\
         # policy (filter, grouping and offline).\n\
         world = \"filter-policy\"\n",
        language.name()
    )
}

fn readme(name: &str, notes: &str) -> String {
    let file = file_name(name);
    let notes: Vec<&str> = notes.lines().filter(|line| line.starts_with("- ")).collect();
    let notes = notes.join("\n");
    format!(
        r##"# {name}

Words give way to `#`, and messages without a body are dropped.

```sh
halley plugin build                   # dist/{file}, its size and its hash
halley plugin test                    # the cases in cases.toml
halley plugin run < messages.jsonl    # what it says to each line
halley plugin bench                   # what it costs
halley plugin dev                     # all of that again whenever a file changes
```

The first build fetches the language's tools into `~/.cache/halley` (HALLEY_CACHE names another folder).
`halley-plugin.toml` says which hooks the policy has, `wit/policy.wit` is the contract.

In the gateway's configuration:

```toml
[[plugin]]
name = "{name}"
path = "/etc/halley/{file}"
config = {{ words = ["spam"], mask = "#" }}
```

{notes}
"##
    )
}

fn file_name(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}

/// Whether this directory is a project in a language other than Rust.
pub(super) fn is_project(folder: &Path) -> bool {
    folder.join(SETTINGS).is_file()
}

/// The command that builds the project in this directory; the output is named after the directory.
///
/// # Errors
/// When its settings are invalid, or the tools cannot be written.
pub(super) fn build_command(folder: &Path, target: &Path) -> anyhow::Result<Command> {
    let file = folder.join(SETTINGS);
    let text =
        files::read_text(&file, LARGEST_INPUT).with_context(|| format!("cannot read {}", file.display()))?;
    let settings: ProjectSettings =
        toml::from_str(&text).with_context(|| format!("{} has a mistake", file.display()))?;
    ensure!(
        settings.language != Language::Rust,
        "{} is for other languages than Rust; a project in Rust has a Cargo.toml",
        file.display()
    );
    let tools = target.join("halley-tools");
    fs::create_dir_all(&tools).with_context(|| format!("cannot write to {}", tools.display()))?;
    for (name, text) in TOOLS {
        let file = tools.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let folder = folder.canonicalize()?;
    let name = folder.file_name().map(PathBuf::from).unwrap_or_default();
    let mut command = Command::new("sh");
    command.arg(tools.join("build.sh")).arg("--project").arg(&folder);
    command.arg(settings.language.name()).arg(settings.world.name());
    command.arg(name.display().to_string().replace('-', "_"));
    Ok(command)
}

impl PluginWorld {
    fn name(self) -> &'static str {
        match self {
            Self::FilterPolicy => "filter-policy",
            Self::GroupingPolicy => "grouping-policy",
            Self::OfflinePolicy => "offline-policy",
            Self::RetentionPolicy => "retention-policy",
            Self::Policy => "policy",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn others() -> impl Iterator<Item = Language> {
        Language::value_variants().iter().copied().filter(|language| *language != Language::Rust)
    }

    #[test]
    fn each_language_has_a_project_whose_settings_are_read() {
        for language in others() {
            let folder = tempfile::tempdir().unwrap();
            language.write_project(folder.path(), "my-policy").unwrap();
            assert!(is_project(folder.path()));
            let settings: ProjectSettings =
                toml::from_str(&fs::read_to_string(folder.path().join(SETTINGS)).unwrap()).unwrap();
            assert_eq!((settings.language, settings.world.name()), (language, "filter-policy"));
            for (path, text) in language.example().0 {
                assert!(text.contains("README.md here") == text.contains(IN_THE_REPOSITORY), "{path}");
                assert!(!fs::read_to_string(folder.path().join(path)).unwrap().contains("README.md here"));
            }
            let readme = fs::read_to_string(folder.path().join("README.md")).unwrap();
            assert!(readme.contains("\n- ") && readme.contains("dist/my_policy.wasm"), "{readme}");
            assert!(!readme.contains("](../"), "nothing leads out of the project: {readme}");
            let command = build_command(folder.path(), &folder.path().join("target")).unwrap();
            let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
            assert_eq!(args[3..5], [language.name(), "filter-policy"]);
        }
    }

    #[test]
    fn all_worlds_of_the_contract_can_be_wanted() {
        for world in [
            PluginWorld::FilterPolicy,
            PluginWorld::RetentionPolicy,
            PluginWorld::GroupingPolicy,
            PluginWorld::OfflinePolicy,
            PluginWorld::Policy,
        ] {
            assert!(sdk::CONTRACT.contains(&format!("world {} {{", world.name())));
        }
    }

    #[test]
    fn docs_name_the_current_contract_version() {
        let version = sdk::CONTRACT.lines().find_map(|line| line.strip_prefix("package halley:policy@"));
        let version = version.unwrap().trim_end_matches(';');
        let readme = include_str!("../../../../plugins/README.md");
        for text in others().map(|language| language.example().1).chain([readme]) {
            for (at, _) in text.match_indices("halley:policy/") {
                let name: String = text[at..].chars().take_while(|c| !" `\";)".contains(*c)).collect();
                let named = name.split_once('@').map(|(_, version)| version.to_owned());
                assert!(named.as_deref().is_none_or(|named| named == version), "{name} is not of {version}");
            }
        }
    }
}
