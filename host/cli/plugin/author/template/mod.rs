//! The contents of a new project, assembled from the parts of its hooks.

use crate::cli::plugin::author::sdk;

/// A hook of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Hook {
    /// Decides about each message: pass, drop, change, dead-letter.
    Filter,
    /// Keeps messages in inboxes or in the room's history, in addition to delivering them.
    Retention,
    /// Selects the comets through which a room is reached.
    Grouping,
    /// Decides what happens to messages of absent users.
    Offline,
}

/// The part of a project that belongs to one hook: one of the TOML files next to this one.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplatePart {
    /// The trait of the SDK.
    hook: String,
    /// What the policy does, in one sentence.
    does: String,
    /// What the tests import from `halley_plugin::testing`.
    uses: Vec<String>,
    /// Fields of the configuration struct.
    fields: String,
    /// The configuration as TOML.
    config: String,
    /// The trait's implementation, for `NAME`.
    code: String,
    /// Its tests; `policy()` creates one with the configuration above.
    tests: String,
    cases: String,
    /// Input for `halley plugin run`.
    questions: String,
}

impl Hook {
    fn part(self) -> TemplatePart {
        let text = match self {
            Self::Filter => include_str!("filter.toml"),
            Self::Retention => include_str!("retention.toml"),
            Self::Grouping => include_str!("grouping.toml"),
            Self::Offline => include_str!("offline.toml"),
        };
        toml::from_str(text).expect("it is part of the program, and a test reads it")
    }
}

/// The files of a project by path, except for the SDK, which is in this directory or copied into the
/// project.
pub(super) fn files(name: &str, hooks: &[Hook], sdk: Option<&str>) -> Vec<(&'static str, String)> {
    let parts: Vec<TemplatePart> = hooks.iter().map(|hook| hook.part()).collect();
    let all =
        |part: fn(&TemplatePart) -> &String| parts.iter().map(part).map(String::as_str).collect::<Vec<_>>();
    let mut uses: Vec<&str> = parts.iter().flat_map(|part| &part.uses).map(String::as_str).collect();
    uses.push("Harness");
    uses.sort_unstable();
    uses.dedup();
    let config = all(|part| &part.config).concat();
    let sdk = sdk.unwrap_or(sdk::NAME);
    let code = [
        ("@DOES", all(|part| &part.does).join("\n//! ")),
        ("@FIELDS", all(|part| &part.fields).join("\n")),
        ("@CODE", all(|part| &part.code).join("\n\n")),
        ("@TESTS", all(|part| &part.tests).join("\n\n")),
        ("@HOOKS", all(|part| &part.hook).join(", ")),
        ("@USES", uses.join(", ")),
        ("@JSON", as_json(&config)),
        ("NAME", type_name(name)),
    ];
    let readme = [
        ("@DOES", all(|part| &part.does).join(" ")),
        ("@CONFIG", config.clone()),
        ("@FILE", name.replace('-', "_")),
        ("@NAME", name.to_owned()),
        ("@SDK", sdk.to_owned()),
    ];
    // JSON's strings are TOML's, too.
    let path = serde_json::Value::from(sdk).to_string();
    let manifest = [("@NAME", name.to_owned()), ("@SDK", sdk::NAME.to_owned()), ("@PATH", path)];
    let cases = [("@CONFIG", config.clone()), ("@CASES", all(|part| &part.cases).concat())];
    vec![
        ("Cargo.toml", filled(include_str!("manifest.toml"), &manifest)),
        ("src/lib.rs", filled(include_str!("lib.rs.txt"), &code)),
        ("cases.toml", filled(include_str!("cases.toml"), &cases)),
        ("messages.jsonl", all(|part| &part.questions).concat()),
        ("README.md", filled(include_str!("readme.md"), &readme)),
        (".gitignore", "/target\n/dist\n".to_owned()),
    ]
}

/// The text with these values in their places, which they have one after the other.
fn filled(text: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (place, value)| text.replace(place, value))
}

fn as_json(config: &str) -> String {
    // The parts' configurations are valid TOML, as the tests show.
    let config: toml::Table = config.parse().unwrap_or_default();
    serde_json::to_string(&config).unwrap_or_default()
}

/// `my-policy` as a Rust type name: `MyPolicy`.
fn type_name(name: &str) -> String {
    let words = name.split(['-', '_']).filter(|word| !word.is_empty());
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    words.map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_called_as_rust_calls_them() {
        assert_eq!(type_name("my-policy_2"), "MyPolicy2");
    }

    #[test]
    fn template_configuration_matches_its_cases() {
        for hooks in
            [&[Hook::Filter][..], &[Hook::Retention], &[Hook::Grouping], &[Hook::Filter, Hook::Offline]]
        {
            let files = files("my-policy", hooks, None);
            let text = |name: &str| files.iter().find(|(path, _)| *path == name).unwrap().1.clone();
            let cases: toml::Table = text("cases.toml").parse().unwrap();
            let config: String = hooks.iter().map(|hook| hook.part().config).collect();
            assert_eq!(cases["config"], toml::Value::Table(config.parse().unwrap()));
            assert!(!text("Cargo.toml").contains('@') && !text("src/lib.rs").contains('@'));
            assert!(!text("cases.toml").contains('@') && !text("README.md").contains('@'));
            assert!(text("src/lib.rs").contains("struct MyPolicy {"));
            assert!(text("messages.jsonl").lines().all(|line| line.starts_with('{')));
        }
    }
}
