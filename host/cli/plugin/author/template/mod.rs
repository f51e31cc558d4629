//! The contents of a new project, assembled from the parts of its hooks.

mod filter;
mod grouping;
mod offline;
mod part;
mod retention;

use part::TemplatePart;

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

impl Hook {
    fn part(self) -> &'static TemplatePart {
        match self {
            Self::Filter => &filter::PART,
            Self::Retention => &retention::PART,
            Self::Grouping => &grouping::PART,
            Self::Offline => &offline::PART,
        }
    }
}

/// The files of a project by path, except for the SDK, which is in this directory or copied into the
/// project.
pub(super) fn files(name: &str, hooks: &[Hook], sdk: Option<&str>) -> Vec<(&'static str, String)> {
    let parts: Vec<&TemplatePart> = hooks.iter().map(|hook| hook.part()).collect();
    vec![
        ("Cargo.toml", manifest(name, sdk.unwrap_or(sdk::NAME))),
        ("src/lib.rs", code(name, &parts)),
        ("cases.toml", cases(&parts)),
        ("messages.jsonl", parts.iter().map(|part| part.questions).collect()),
        ("README.md", readme(name, &parts, sdk.unwrap_or(sdk::NAME))),
        (".gitignore", "/target\n/dist\n".to_owned()),
    ]
}

fn manifest(name: &str, path: &str) -> String {
    // JSON's strings are TOML's, too.
    let (sdk, path) = (sdk::NAME, serde_json::Value::from(path));
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
publish = false

[lib]
crate-type = ["cdylib"]

[dependencies]
{sdk} = {{ path = {path}, features = ["schema"] }}
serde = {{ version = "1", features = ["derive"] }}
schemars = {{ version = "1", default-features = false, features = ["derive"] }}

[dev-dependencies]
serde_json = "1"

# Not a member of a workspace around it.
[workspace]
"#
    )
}

fn code(name: &str, parts: &[&TemplatePart]) -> String {
    let policy = type_name(name);
    let all = |part: fn(&TemplatePart) -> &str| {
        parts.iter().map(|p| part(p).trim_matches('\n')).collect::<Vec<_>>()
    };
    let hooks = all(|part| part.hook).join(", ");
    let (does, fields) = (all(|part| part.does).join("\n//! "), all(|part| part.fields).join("\n"));
    let (code, tests) = (all(|part| part.code).join("\n\n"), all(|part| part.tests).join("\n\n"));
    let mut uses: Vec<&str> = parts.iter().flat_map(|part| part.uses).copied().chain(["Harness"]).collect();
    uses.sort_unstable();
    uses.dedup();
    let (uses, json) = (uses.join(", "), config_as_json(parts));
    let text = format!(
        r#"//! {does}

use halley_plugin::prelude::*;
use schemars::JsonSchema;

/// The gateway's `[plugin.config]`. Mistyped keys are refused; the comments describe the settings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NAME {{
{fields}
}}

{code}

halley_plugin::export!(NAME: {hooks}, Settings);
halley_plugin::settings!(NAME);

#[cfg(test)]
mod tests {{
    use halley_plugin::testing::{{{uses}}};

    use super::*;

    fn policy() -> Harness<NAME> {{
        Harness::new(serde_json::json!({json}))
    }}

{tests}
}}
"#
    );
    text.replace("NAME", &policy)
}

fn config_as_json(parts: &[&TemplatePart]) -> String {
    // The constants of this module are valid TOML, as its tests show.
    let config: toml::Table = config(parts).parse().unwrap_or_default();
    serde_json::to_string(&config).unwrap_or_default()
}

fn config(parts: &[&TemplatePart]) -> String {
    parts.iter().map(|part| part.config).collect()
}

fn cases(parts: &[&TemplatePart]) -> String {
    let config = config(parts);
    let cases: String = parts.iter().map(|part| part.cases).collect();
    format!(
        r#"# Expected answers: `halley plugin test` runs each case on a fresh instance.

# The configuration, unless a case has its own.
[config]
{config}{cases}
[[case]]
name = "a mistyped key is refused"
config = {{ wrods = [] }}
refused = "config.wrods: unknown key"
"#
    )
}

fn readme(name: &str, parts: &[&TemplatePart], sdk: &str) -> String {
    let does: Vec<&str> = parts.iter().map(|part| part.does).collect();
    let (does, config, file) = (does.join(" "), config(parts), name.replace('-', "_"));
    format!(
        r#"# {name}

{does}

```sh
halley plugin build                   # dist/{file}.wasm, its size and its hash
halley plugin test                    # the cases in cases.toml
cargo test                            # the tests in src/lib.rs, without WebAssembly
halley plugin run < messages.jsonl    # its answer to each line
halley plugin bench                   # its cost
halley plugin dev                     # build and test on every change
```

In the gateway's configuration:

```toml
[[plugin]]
name = "{name}"
path = "/etc/halley/{file}.wasm"

[plugin.config]
{config}```

A new file at that path takes effect within about a second. `halley plugin push dist/{file}.wasm`
activates it in a running gateway at once, `halley plugin rollback {name}` reverts that, and
`halley plugin dev --push` pushes every build that passes its cases.

`{sdk}` is the SDK, in the version of the gateway; `cargo doc --open -p halley-plugin` is its
reference.
"#
    )
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
            let parts: Vec<&TemplatePart> = hooks.iter().map(|hook| hook.part()).collect();
            assert_eq!(cases["config"], toml::Value::Table(config(&parts).parse().unwrap()));
            assert!(text("src/lib.rs").contains("struct MyPolicy {"));
            assert!(text("messages.jsonl").lines().all(|line| line.starts_with('{')));
        }
    }
}
