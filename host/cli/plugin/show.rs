//! `halley plugin status` and `versions`: what is in force, and what is kept.

use serde_json::Value;

use crate::cli::plugin::gateway::Gateway;
use crate::cli::plugin::table::{Table, short, text};
use crate::cli::{SUCCESS, print, runtime};

/// Arguments of `halley plugin status`.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// One plugin only.
    name: Option<String>,
    #[command(flatten)]
    how: How,
}

/// Arguments of the commands that show one plugin.
#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// The plugin's name.
    name: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// Prints the gateway's answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn status(args: Status) -> anyhow::Result<u8> {
    let mut steps = vec!["v1", "plugins"];
    steps.extend(args.name.as_deref());
    show(&args.how, &steps, if args.name.is_some() { one_status } else { all_status })
}

pub(super) fn versions(args: One) -> anyhow::Result<u8> {
    show(&args.how, &["v1", "plugins", &args.name, "versions"], all_versions)
}

fn show(how: &How, steps: &[&str], readable: fn(&Value) -> String) -> anyhow::Result<u8> {
    let answer = runtime()?.block_on(how.gateway.get(steps))?;
    print(&if how.json { serde_json::to_string_pretty(&answer)? } else { readable(&answer) });
    Ok(SUCCESS)
}

fn all_status(status: &Value) -> String {
    let mut lines =
        vec![format!("generation {} since {}", text(&status["generation"]), text(&status["since"]))];
    let mut table = Table::new(&["PLUGIN", "VERSION", "STATE", "DECIDES", "HOOKS"]);
    for plugin in status["plugins"].as_array().into_iter().flatten() {
        let instead = &status["overrides"][text(&plugin["name"])];
        table.row(row(plugin, instead));
    }
    for (name, instead) in status["overrides"].as_object().into_iter().flatten() {
        if instead["with"].is_null() {
            table.row(vec![
                name.clone(),
                "-".into(),
                "left out".into(),
                text(&instead["why"]),
                String::new(),
            ]);
        }
    }
    lines.push(table.to_string());
    lines.extend(refusal(&status["last_refusal"]));
    lines.join("\n")
}

fn one_status(answer: &Value) -> String {
    let (plugin, instead) = (&answer["plugin"], &answer["override"]);
    let mut table = Table::new(&[]);
    let mut line = |what: &str, value: String| {
        if !value.is_empty() {
            table.row(vec![what.to_owned(), value]);
        }
    };
    line("plugin", text(&answer["name"]));
    line("version", if plugin.is_null() { "none: left out".into() } else { text(&plugin["hash"]) });
    for what in ["state", "path", "size", "wit_version", "deadline", "memory"] {
        line(what, text(&plugin[what]));
    }
    line("hooks", hooks(plugin));
    line("decides", if instead.is_null() { "its file".into() } else { text(&instead["why"]) });
    if !instead.is_null() {
        line("since", text(&instead["since"]));
    }
    let mut lines = vec![table.to_string()];
    lines.extend(refusal(&answer["last_refusal"]));
    lines.join("\n")
}

fn row(plugin: &Value, instead: &Value) -> Vec<String> {
    let decides = if instead.is_null() { "its file".to_owned() } else { text(&instead["why"]) };
    vec![text(&plugin["name"]), short(&plugin["hash"]), text(&plugin["state"]), decides, hooks(plugin)]
}

fn hooks(plugin: &Value) -> String {
    let hooks: Vec<&str> =
        plugin["hooks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    hooks.join(", ")
}

fn refusal(refusal: &Value) -> Vec<String> {
    if refusal.is_null() {
        return Vec::new();
    }
    let mut lines = vec![format!("refused at {}; what is in force stays:", text(&refusal["at"]))];
    let errors = refusal["errors"].as_array().into_iter().flatten();
    lines.extend(errors.map(|error| format!("  {}", text(error))));
    lines
}

fn all_versions(answer: &Value) -> String {
    let mut table = Table::new(&["VERSION", "SIZE", "", "AT", "WHY"]);
    for version in answer["versions"].as_array().into_iter().flatten() {
        let mut first = (short(&version["hash"]), text(&version["size"]));
        for event in version["events"].as_array().into_iter().flatten() {
            let (hash, size) = std::mem::take(&mut first);
            table.row(vec![hash, size, text(&event["what"]), text(&event["at"]), text(&event["why"])]);
        }
        let against = &version["against"];
        if !against.is_null() {
            table.row(vec![String::new(), String::new(), "against".into(), String::new(), text(against)]);
        }
    }
    table.to_string()
}
