//! `halley offsets`: the consumer group's position in its topics.

use std::time::Duration;

use clap::Subcommand;

use crate::cli::{ConfigArgs, EXIT_SUCCESS, EXIT_USAGE, fail, print, runtime};
use crate::config::Config;
use crate::kafka::{SkipRequest, SkippedRange, skip};

/// Arguments of `halley offsets`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Skips records of one partition that cannot be read.
    ///
    /// For a batch that Kafka's client cannot decode: `/readyz`, `GET /v1/stalls` and the log name
    /// its topic, partition and offset. Skipped records are not delivered, and do not become dead
    /// letters. Try a higher `receive.message.max.bytes` in [kafka.properties] first if that may
    /// help.
    ///
    /// The group's members own its offsets: stop all of its gateways first.
    Skip(SkipArgs),
}

#[derive(Debug, clap::Args)]
struct SkipArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// The partition.
    #[arg(long, value_name = "N")]
    partition: i32,
    /// The first offset to read. Default: the first readable one, found by trying.
    #[arg(long, value_name = "OFFSET")]
    to: Option<i64>,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Command::Skip(SkipArgs { config, topic, partition, to }) = args.command;
    let config = match Config::load(config.config.as_deref()) {
        Ok(config) => config,
        Err(mistakes) => {
            fail(&mistakes.to_string());
            return Ok(EXIT_USAGE);
        }
    };
    let runtime = runtime()?;
    let wanted = SkipRequest { topic: topic.clone(), partition, to };
    let skipped = runtime.block_on(skip(&config.kafka, wanted));
    // A call to an unreachable Kafka may still block; the process does not wait for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let SkippedRange { from, to } = skipped?;
    let group = &config.kafka.group;
    print(&format!(
        "group `{group}` continues in `{topic}` partition {partition} at offset {to}: skipped offsets {from} to {}",
        to - 1
    ));
    Ok(EXIT_SUCCESS)
}
