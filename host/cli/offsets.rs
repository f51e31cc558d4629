//! `halley offsets`: the consumer group's position in its topics.

use clap::Subcommand;

use crate::cli::{ConfigArgs, EXIT_SUCCESS, block_on, print};
use crate::kafka::{SkipRequest, SkippedRange, skip};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
pub(super) struct SkipArgs {
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

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    let Command::Skip(SkipArgs { config, topic, partition, to }) = command;
    let config = config.load()?;
    let wanted = SkipRequest { topic: topic.clone(), partition, to };
    let SkippedRange { from, to } = block_on(skip(&config.kafka, wanted))?;
    let group = &config.kafka.group;
    print(&format!(
        "group `{group}` continues in `{topic}` partition {partition} at offset {to}: skipped offsets {from} to {}",
        to - 1
    ));
    Ok(EXIT_SUCCESS)
}
