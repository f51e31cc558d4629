//! `halley explain`: where a message would go, and why.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use prometheus_client::registry::Registry;

use crate::cli::message_spec::{MessageSpec, OPERATION};
use crate::cli::{ConfigArgs, EXIT_SUCCESS, print_json, print_lines, read_input, runtime};
use crate::config::Config;
use crate::gateway::{self, Storage};
use crate::message::Message;
use crate::pipeline::{Explanation, explain};
use crate::policy::{Policies, PolicyDependencies};

/// Arguments of `halley explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    target: ExplainTarget,
    /// The operation of the message to --room or --user.
    #[arg(long, default_value_t = OPERATION)]
    operation: i32,
    /// The body of the message to --room or --user.
    #[arg(long, default_value = "hello")]
    body: String,
    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ExplainTarget {
    /// A message to this room.
    #[arg(long)]
    room: Option<String>,
    /// A message to this user or connection id.
    #[arg(long)]
    user: Option<String>,
    /// A message from a JSON file: {"room": "r"} or {"keys": ["k"], "server": "s"} or
    /// {"everyone": true}, with optional "operation", "speed", "body" or "body_base64", "headers",
    /// "at" (when it was produced).
    #[arg(long, value_name = "FILE")]
    message: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let config = args.config.load()?;
    let message = message_spec(&args)?.into_message(&config.kafka.topics[0], 0)?;
    let explanation = runtime()?.block_on(explain_with(&config, message))?;
    if args.json {
        print_json(&serde_json::to_string_pretty(&explanation)?);
    } else {
        print_lines(lines(&explanation));
    }
    Ok(EXIT_SUCCESS)
}

fn message_spec(args: &Args) -> anyhow::Result<MessageSpec> {
    let (operation, body) = (args.operation, args.body.clone());
    let ExplainTarget { room, user, message } = &args.target;
    if let Some(file) = message {
        return read_draft(file);
    }
    let keys = user.iter().cloned().collect();
    Ok(MessageSpec { room: room.clone(), keys, operation, body, ..MessageSpec::default() })
}

fn read_draft(file: &Path) -> anyhow::Result<MessageSpec> {
    let text = read_input(file)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a message; see --help", file.display()))
}

async fn explain_with(config: &Config, message: Message) -> anyhow::Result<Explanation> {
    let mut registry = Registry::default();
    let plugins = config.plugins()?;
    let storage = Storage::open(config, &mut registry)?;
    let policies = Policies::start_with(PolicyDependencies::of_command(&config.policies)?, &plugins)?;
    let fleet = gateway::observe_fleet(config, &storage, &mut registry).await?;
    let resolver = gateway::resolver(config, &storage, &fleet, &mut registry);
    let mut chain = policies.current().chain();
    explain(message, &resolver, &mut chain, &fleet, &*storage.shared_state, &config.offline).await
}

fn lines(explanation: &Explanation) -> Vec<String> {
    let mut lines = vec![format!("to        {}", explanation.audience)];
    let policies: Vec<_> = explanation.policies.iter().map(ToString::to_string).collect();
    let policies = if policies.is_empty() { "none".to_owned() } else { policies.join(", ") };
    lines.push(format!("policies  {policies}"));
    lines.extend(explanation.decisions.iter().map(|decision| format!("          {decision}")));
    lines.push(format!("verdict   {}", explanation.verdict));
    lines.extend(explanation.guards.iter().map(|guard| format!("guard     {guard}")));
    if !explanation.retention.is_empty() {
        lines.push(format!("kept in   {}", explanation.retention.join(", ")));
    }
    if let Some(room) = &explanation.room {
        lines.push(format!("room      connections: {}, stale members: {}", room.connections, room.stale));
    }
    for call in &explanation.calls {
        let recipients =
            if call.recipients == 0 { String::new() } else { format!(" for {}", call.recipients) };
        lines.push(format!("call      {} {}{recipients}", call.comet, call.method));
        lines.extend(call.problem.iter().map(|problem| format!("          cannot be made: {problem}")));
    }
    if explanation.withheld > 0 {
        lines.push(format!("withheld  from {} by policy", explanation.withheld));
    }
    for fate in &explanation.absent {
        lines.push(format!("absent    {} ({}): {} by {}", fate.user, fate.cause, fate.disposition, fate.by));
    }
    if explanation.calls.is_empty() && explanation.verdict == "pass" {
        lines.push("call      none: no recipient is connected".to_owned());
    }
    if let Some(reach) = &explanation.reach {
        lines.push(format!("reach     {reach}"));
        let left_out = reach.left_out.iter();
        lines.extend(left_out.map(|comet| {
            format!("          skips {comet}: not recently named by the directory, and unreachable")
        }));
    }
    lines.extend(explanation.notes.iter().map(|note| format!("note      {note}")));
    lines
}
