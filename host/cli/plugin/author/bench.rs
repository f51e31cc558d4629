//! `halley plugin bench`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::cli::message_spec::MessageSpec;
use crate::cli::plugin::author::project::{ConfiguredPolicy, EngineArgs};
use crate::cli::plugin::author::question::RoomSpec;
use crate::cli::{EXIT_SUCCESS, OrUsage as _, fail, print, read_input};
use crate::decision::PolicyStalled;
use crate::decision::{AbsenceCause, AbsentRecipient, IdKind};
use crate::membership::Grouping;
use crate::message::Message;
use crate::policy::{Chain, HookKind, OnError, PluginConfig, Policies};
use crate::wasm::{Runtime, RuntimeConfig, idle_plugin};

/// Messages in a batch, absent users of a message, or connections of a room.
const SIZES: [usize; 4] = [1, 16, 64, 256];
/// The minimum number of measurements per size; more are taken while there is time.
const LEAST: usize = 5;

/// Arguments of `halley plugin bench`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    configured: ConfiguredPolicy,
    #[command(flatten)]
    engine: EngineArgs,
    /// Messages to measure with: JSON, one per line, as for `halley plugin run`. Default: messages of
    /// 200 bytes to a room.
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Seconds per line of the table, 0.1 to 60.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
}

fn seconds(text: &str) -> anyhow::Result<f64> {
    let seconds: f64 = text.parse().ok().context("give a number")?;
    anyhow::ensure!((0.1..=60.0).contains(&seconds), "give 0.1 to 60");
    Ok(seconds)
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let config = args.configured.config().or_usage()?;
    let messages = messages(args.messages.as_deref()).or_usage()?;
    let engine = args.engine.config()?;
    let policy = args.configured.place.policy()?;
    if cfg!(debug_assertions) {
        fail(
            "this is a development build of halley, whose engine is many times slower: the figures are meaningless",
        );
    }
    let mut idle = tempfile::Builder::new().suffix(".wasm").tempfile()?;
    idle.write_all(&idle_plugin()?)?;
    let mut pair = (
        chain(&policy, &config, engine)?,
        chain(idle.path(), &serde_json::json!({}), RuntimeConfig::default())?,
    );
    let time = Duration::from_secs_f64(args.seconds);
    print("hook        size   calls/s  ns each  idle  above");
    let set = pair.0.set().clone();
    if set.sees_batches() {
        // A plugin that filters and keeps is called twice per batch; this measures both.
        let hook = if set.has(HookKind::Filter) { "filter" } else { "retention" };
        table(hook, time, &mut pair, |chain, size| filter(chain, &messages, size))?;
    }
    if set.has(HookKind::Offline) {
        table("offline", time, &mut pair, |chain, size| offline(chain, &messages, size))?;
    }
    if set.has(HookKind::Grouping) {
        table("grouping", time, &mut pair, grouping)?;
    }
    print(&format!("memory of its instance: {} KiB", pair.0.memory() / 1024));
    print("ns for each message, absent user or connection; idle: the same of a policy that does nothing");
    Ok(EXIT_SUCCESS)
}

fn chain(file: &Path, config: &Value, engine: RuntimeConfig) -> anyhow::Result<Chain> {
    let mut plugin = PluginConfig::new("policy", file);
    plugin.config = config.clone();
    // A failing call is not a measurement; the figures show a slow one.
    plugin.on_error = OnError::Stall.into();
    plugin.deadline = Duration::from_secs(10);
    Ok(Policies::start(Runtime::with(&mut Registry::default(), engine)?, &[plugin])?.current().chain())
}

/// Prints one line per size.
fn table(
    hook: &str,
    time: Duration,
    pair: &mut (Chain, Chain),
    call: impl Fn(&mut Chain, usize) -> Result<Duration, PolicyStalled>,
) -> anyhow::Result<()> {
    for size in SIZES {
        let (mut own, mut idle) = (Vec::new(), Vec::new());
        let until = Instant::now() + time;
        while own.len() < LEAST || Instant::now() < until {
            own.push(call(&mut pair.0, size)?);
            idle.push(call(&mut pair.1, size)?);
        }
        let (own, idle) = (median(&mut own), median(&mut idle));
        let each = |time: Duration| time.as_nanos() as f64 / size as f64;
        let per_second = 1.0 / own.as_secs_f64().max(1e-9);
        let (own, idle) = (each(own), each(idle));
        print(&format!("{hook:<10}{size:>6}{per_second:>10.0}{own:>9.0}{idle:>6.0}{:>7.0}", own - idle));
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn filter(chain: &mut Chain, messages: &[Message], size: usize) -> Result<Duration, PolicyStalled> {
    let batch: Vec<Message> = messages.iter().cycle().take(size).cloned().collect();
    let begun = Instant::now();
    let filtered = chain.filter("push", 0, batch)?;
    let taken = begun.elapsed();
    drop(filtered);
    Ok(taken)
}

fn offline(chain: &mut Chain, messages: &[Message], size: usize) -> Result<Duration, PolicyStalled> {
    let user = |number: usize| AbsentRecipient {
        by_policy: false,
        user: format!("user_{number}").as_str().into(),
        identity: IdKind::User,
        connection: None,
        cause: AbsenceCause::NotOnline,
    };
    let absent: Vec<AbsentRecipient> = (0..size).map(user).collect();
    let begun = Instant::now();
    chain.decide(&messages[0], &absent)?;
    Ok(begun.elapsed())
}

fn grouping(chain: &mut Chain, size: usize) -> Result<Duration, PolicyStalled> {
    let (room, mut grouping): (_, Grouping) = RoomSpec::of(size).grouping();
    let begun = Instant::now();
    chain.regroup(&room, &mut grouping)?;
    Ok(begun.elapsed())
}

/// The messages to measure with.
fn messages(file: Option<&Path>) -> anyhow::Result<Vec<Message>> {
    let Some(file) = file else {
        let text = "this is what people say to each other in a room where a stream is watched";
        let body = format!("{:<200}", format!("{{\"user\":\"user_1\",\"text\":\"{text}\"}}"));
        let message_spec = MessageSpec { room: Some("video_1".to_owned()), body, ..MessageSpec::default() };
        return Ok(vec![message_spec.into_message("push", 1)?]);
    };
    let text = read_input(file)?;
    let mut messages = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let read = || -> anyhow::Result<Message> {
            serde_json::from_str::<MessageSpec>(line)?.into_message("push", at as i64)
        };
        messages.push(read().with_context(|| format!("{} line {}", file.display(), at + 1))?);
    }
    anyhow::ensure!(!messages.is_empty(), "{} has no messages", file.display());
    Ok(messages)
}
