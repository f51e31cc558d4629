//! `halley dead-letter`: what could not be delivered, listed and brought back.

mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod list;
mod redrive;
mod show;

use std::time::Duration;

use clap::Subcommand;

use crate::cli::{ConfigArgs, MISTAKE, fail, runtime};
use crate::config::Config;

/// Arguments of `halley dead-letter`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the dead letters that are there now, as they stand in their topic.
    ///
    /// Reads `[kafka] dead_letter_topic` from its beginning to its present end, joins no
    /// consumer group and changes nothing.
    List(list::Args),
    /// Writes dead letters back to the topics that they came from.
    ///
    /// Each goes to its topic and partition of origin with its original key, value, headers
    /// and timestamp, and with `halley-message-id`, by which comets recognise a message that
    /// they have had. It counts as redriven once the broker has confirmed it. What the filters
    /// leave out, what is refused and what could not be written stays for another run, with
    /// these filters or others: nothing is passed over, and nothing is redriven twice.
    ///
    /// A message goes only to the comets that did not take it (`halley-failed-comets`), unless
    /// `--all-comets` is given. A BROADCAST whose comets are gone reaches nobody; a message for a
    /// room or for keys goes to all of them when one of its comets holds nobody of them any more.
    /// Where comets took it and it could not be kept for users who were away, it goes only to these
    /// (`halley-failed-users`), live to those who are back; of more of them than the header names
    /// (16 KiB), to those who are still away.
    ///
    /// Letters go only to topics of `[kafka] topics`, and to those that --allow-topic names: whoever
    /// can write to the dead-letter topic can write into a letter where it came from. What is written
    /// carries a proof (`halley-proof`), made with a key in Redis, without which gateways would take
    /// it for a new message; so this needs the `[redis]` of the gateways.
    ///
    /// A letter whose value, key or headers were left out is refused: it names the place where
    /// they may still stand. One whose topic does not take its timestamp any more is written with the
    /// time of now, and has its own in `halley-origin-timestamp`.
    ///
    /// Progress is remembered every second in the committed offsets of a consumer group, so
    /// that an interrupted run (Ctrl-C) can simply be run again; killed, it repeats at most
    /// the last second. Filters that leave out thousands of records in between can outgrow
    /// what one commit tells (about 1,000 gaps for each partition); the summary says so.
    /// Run one redrive at a time.
    Redrive(redrive::Args),
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let file: &ConfigArgs = match &args.command {
        Command::List(args) => &args.config,
        Command::Redrive(args) => &args.config,
    };
    let config = match Config::load(file.file().as_deref()) {
        Ok(config) => config,
        Err(mistakes) => {
            fail(&mistakes.to_string());
            return Ok(MISTAKE);
        }
    };
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        match args.command {
            Command::List(args) => list::run(&config.kafka, &args).await,
            Command::Redrive(args) => redrive::run(&config, &args).await,
        }
    });
    // A call to a Kafka that is away may still block; nobody waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}
