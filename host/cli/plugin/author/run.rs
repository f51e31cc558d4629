//! `halley plugin run`.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::message_spec::MessageSpec;
use crate::cli::plugin::author::answer::PolicyAnswer;
use crate::cli::plugin::author::plugin_under_test::{PluginUnderTest, TestInstance};
use crate::cli::plugin::author::project::{CallLimits, ConfiguredPolicy, EngineArgs};
use crate::cli::plugin::author::question::{OfflineSpec, RoomSpec};
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, fail, print, print_json};
use crate::files;
use crate::telemetry::Fields;

/// The maximum length of a line, in bytes.
const LONGEST_LINE: u64 = 16 * 1024 * 1024;

/// Arguments of `halley plugin run`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    configured: ConfiguredPolicy,
    #[command(flatten)]
    limits: CallLimits,
    #[command(flatten)]
    engine: EngineArgs,
    /// The file with the inputs. Default, or with `-`: standard input.
    #[arg(long, short, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Prints one line of JSON per input.
    #[arg(long)]
    json: bool,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let (config, engine) = (args.configured.config().or_usage()?, args.engine.config()?);
    let mut questions: Box<dyn Read> = match &args.messages {
        Some(file) if file.as_os_str() != "-" => {
            let opened = files::open_argument(file);
            Box::new(opened.with_context(|| format!("cannot read {}", file.display())).or_usage()?)
        }
        _ => Box::new(std::io::stdin()),
    };
    let policy = args.configured.place.policy()?;
    show_its_log();
    let mut under_test = PluginUnderTest::new(&policy, args.limits, engine)?;
    let mut instance = under_test.with(&config).map_err(|why| {
        anyhow::anyhow!(
            "the policy does not start with the configuration {config}: {why}; see --plugin-config"
        )
    })?;
    let code = ask_all(&mut questions, &mut instance, args.json)?;
    for number in under_test.numbers() {
        fail(&number);
    }
    let deadline = args.limits.deadline;
    fail(&format!("each call had {deadline}, as a [[plugin]] with `deadline = \"{deadline}\"`"));
    Ok(code)
}

fn ask_all(questions: &mut dyn Read, instance: &mut TestInstance, json: bool) -> anyhow::Result<u8> {
    let mut lines = BufReader::new(questions);
    let (mut line, mut number, mut code) = (Vec::new(), 0, EXIT_SUCCESS);
    loop {
        line.clear();
        if lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(code);
        }
        number += 1;
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        let answered = ask(instance, text.trim()).with_context(|| format!("line {number}"));
        let (hook, answer) = answered.or_usage()?;
        if answer.is_failure() {
            code = EXIT_FAILURE;
        }
        if json {
            print_json(&json!({ "line": number, "hook": hook, "answer": answer.lines() }).to_string());
        } else {
            print(&format!("{number:>5}  {hook:<8}  {}", answer.lines().join(", ")));
        }
    }
}

/// The fields of the input select the hook.
fn ask(instance: &mut TestInstance, text: &str) -> anyhow::Result<(&'static str, PolicyAnswer)> {
    let value: Value = serde_json::from_str(text)?;
    if value.get("connections").is_some() {
        let room_spec: RoomSpec = serde_json::from_value(value)?;
        return Ok(("grouping", instance.regroup(&room_spec)?));
    }
    if value.get("absent").is_some() {
        let offline_spec: OfflineSpec = serde_json::from_value(value)?;
        return Ok(("offline", instance.decide(offline_spec)?));
    }
    let message_spec: MessageSpec = serde_json::from_value(value)?;
    Ok(("filter", instance.filter(message_spec)?))
}

/// Shows the policy's log on standard error.
fn show_its_log() {
    let is_terminal = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().fmt_fields(Fields).with_writer(std::io::stderr);
    let format = format.without_time().with_ansi(is_terminal);
    let filter = tracing_subscriber::EnvFilter::new("off,halley::plugin=trace");
    if format.with_env_filter(filter).try_init().is_err() {
        fail("the policy's log is not shown: a logger is installed already");
    }
}
