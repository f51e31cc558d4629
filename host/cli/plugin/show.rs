//! `halley plugin status`, `versions` and `differences`.

use serde_json::Value;

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::{EXIT_SUCCESS, print, print_json, print_lines};

/// Arguments of `halley plugin status`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StatusArgs {
    /// Shows this plugin only.
    name: Option<String>,
    /// Prints the gateway's JSON response.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// Arguments of `halley plugin versions` and `differences`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowArgs {
    /// The plugin.
    name: String,
    /// Prints the gateway's JSON response.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn status(args: StatusArgs) -> anyhow::Result<u8> {
    if let Some(name) = &args.name {
        let one = args.gateway.get(&["plugins", name])?;
        if args.json {
            print_json(&pretty(&one));
        } else {
            print_lines(plugin_lines(name, &one));
        }
        return Ok(EXIT_SUCCESS);
    }
    let all = args.gateway.get(&["plugins"])?;
    if args.json {
        print_json(&pretty(&all));
        return Ok(EXIT_SUCCESS);
    }
    print(&format!("generation {} since {}", all["generation"], text(&all["since"])));
    for plugin in all["plugins"].as_array().into_iter().flatten() {
        let name = text(&plugin["name"]);
        let one = serde_json::json!({ "active": plugin, "override": all["overrides"][name] });
        print_lines(plugin_lines(name, &one).iter().map(|line| format!("  {line}")));
    }
    for (name, instead) in all["overrides"].as_object().into_iter().flatten() {
        if instead["with"].is_null() {
            print(&format!("  {name}: removed from the chain; {}", text(&instead["why"])));
        }
    }
    for why in all["last_refusal"]["errors"].as_array().into_iter().flatten() {
        print(&format!("refused: {}", text(why)));
    }
    Ok(EXIT_SUCCESS)
}

pub(super) fn versions(args: ShowArgs) -> anyhow::Result<u8> {
    let answer = args.gateway.get(&["plugins", &args.name, "versions"])?;
    if args.json {
        print_json(&pretty(&answer));
        return Ok(EXIT_SUCCESS);
    }
    for version in answer["versions"].as_array().into_iter().flatten() {
        let against = match text(&version["exclusion"]["what"]) {
            "" => String::new(),
            what => format!("  {what}"),
        };
        print(&format!("{}  {} bytes{against}", text(&version["hash"]), version["size"]));
        for event in version["events"].as_array().into_iter().flatten() {
            print(&format!("  {}  {}: {}", text(&event["at"]), text(&event["what"]), text(&event["why"])));
        }
    }
    Ok(EXIT_SUCCESS)
}

pub(super) fn differences(args: ShowArgs) -> anyhow::Result<u8> {
    let answer = args.gateway.get(&["plugins", &args.name, "differences"])?;
    if args.json {
        print_json(&pretty(&answer));
        return Ok(EXIT_SUCCESS);
    }
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    print(&format!(
        "{} of {} messages would have been decided differently; {} more were not compared",
        number("count"),
        number("compared"),
        number("not_compared")
    ));
    for difference in answer["latest"].as_array().into_iter().flatten() {
        let [message, kind, active, candidate] =
            ["message", "kind", "active", "candidate"].map(|name| text(&difference[name]));
        print(&format!("  {message}  {kind}: {active}  ->  {candidate}"));
    }
    Ok(EXIT_SUCCESS)
}

/// One line for a plugin, and one for its rollout.
pub(super) fn plugin_lines(name: &str, one: &Value) -> Vec<String> {
    let (plugin, instead) = (&one["active"], &one["override"]);
    if plugin.is_null() {
        return vec![format!("{name}: removed from the chain; {}", text(&instead["why"]))];
    }
    let hash = short(text(&plugin["hash"]));
    let hooks: Vec<&str> = plugin["hooks"].as_array().into_iter().flatten().map(text).collect();
    let why = match text(&instead["why"]) {
        "" => text(&plugin["state"]).to_owned(),
        why => format!("{}, overriding its file: {why}", text(&plugin["state"])),
    };
    let plugin_line = format!("{name}@{hash}  {}  {why}", hooks.join(" "));
    std::iter::once(plugin_line).chain(rollout_line(plugin)).collect()
}

fn rollout_line(plugin: &Value) -> Option<String> {
    let rollout = &plugin["rollout"];
    if rollout.is_null() {
        let last = &plugin["last_rollout"];
        let ended = |hash: &str| format!("    candidate {}: {}", short(hash), text(&last["why"]));
        return last["hash"].as_str().map(ended);
    }
    let candidate = short(text(&rollout["candidate"]));
    let [mode, share, elapsed, errors, drops, latency, active_drops, active_latency] =
        ["mode", "weight", "elapsed", "errors", "drops", "latency", "active_drops", "active_latency"]
            .map(|name| text(&rollout[name]));
    let decides = if mode == "canary" { format!(" of {share}") } else { String::new() };
    let messages = &rollout["messages"];
    Some(format!(
        "    {mode}{decides} {candidate}, running for {elapsed}: {messages} messages, {errors} failed, \
         {drops} stopped (active {active_drops}), {latency} each (active {active_latency})"
    ))
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}
