//! `halley dead-letter`: lists and redrives records that could not be delivered.

mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod list;
mod redrive;
mod show;

use clap::Subcommand;

use crate::cli::{ConfigArgs, block_on};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the dead letters in the topic.
    ///
    /// Reads `[kafka] dead_letter_topic` from its beginning to its current end. Joins no consumer
    /// group and changes nothing.
    List(list::Args),
    /// Writes dead letters back to their topics of origin.
    ///
    /// Each one goes to its original topic and partition with its original key, value, headers and
    /// timestamp, and with `halley-message-id`, by which comets recognise a message that they already
    /// received. It counts as redriven once the broker has confirmed it. Letters that the filters
    /// exclude, that are refused or that could not be written stay for another run, with the same
    /// filters or others: nothing is skipped, and nothing is redriven twice.
    ///
    /// A message goes only to the comets that did not accept it (`halley-failed-comets`), unless
    /// `--all-comets` is given. A BROADCAST whose comets are gone reaches nobody. A message for a
    /// room or for keys goes to all of its comets if one of the failed comets no longer holds any of
    /// its recipients. If all comets accepted it and it could not be stored for absent users, it goes only to
    /// these (`halley-failed-users`): live to those who are back. If there are more than the header
    /// holds (16 KiB), it goes to those who are still absent.
    ///
    /// Letters go only to topics of `[kafka] topics` and of --allow-topic: anyone who can write to
    /// the dead-letter topic can forge the origin of a letter. Redriven records carry a proof
    /// (`halley-proof`), made with a key in Redis; without it gateways would treat them as new
    /// messages. So this command needs the `[redis]` section of the gateways.
    ///
    /// A letter whose value, key or headers were left out is refused, with the place where the
    /// original may still be. A letter whose topic no longer accepts its timestamp is written with
    /// the current time; the original is kept in `halley-origin-timestamp`.
    ///
    /// Progress is committed every second to the offsets of a consumer group, so that an interrupted
    /// run (Ctrl-C) can be run again. A killed run repeats at most the last second. Filters that
    /// exclude thousands of records in between can exceed what one commit holds (about 1,000 gaps per
    /// partition); the summary reports it. Run one redrive at a time.
    Redrive(redrive::Args),
}

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    let file: &ConfigArgs = match &command {
        Command::List(args) => &args.config,
        Command::Redrive(args) => &args.config,
    };
    let config = file.load()?;
    block_on(async {
        match command {
            Command::List(args) => list::run(&config.kafka, &args).await,
            Command::Redrive(args) => redrive::run(&config, &args).await,
        }
    })
}
