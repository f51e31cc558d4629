//! `halley plugin`: one file for each group of commands.

mod client;
mod push;
mod show;
mod steer;

use clap::Subcommand;

/// Arguments of `halley plugin`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts new versions of policies in force in a running gateway, several of them as one.
    ///
    /// They are compiled, checked and tried there before anything changes; what is refused
    /// changes nothing. A pushed version decides until the plugin's file changes, or until it
    /// is rolled back or released. With `[policies] state_folder` it outlives a restart.
    Push(push::Args),
    /// Goes back to an earlier version of a policy: the last good one, or one that is named.
    Rollback(steer::RollbackArgs),
    /// Ends a push, a rollback or a quarantine: the policy's file decides again.
    Release(steer::NameArgs),
    /// Ends a trial: the candidate decides from now on, until the policy's file changes.
    Promote(steer::NameArgs),
    /// Ends a trial: the candidate goes, and comes again only with another content.
    Abandon(steer::NameArgs),
    /// Shows what a candidate that looks on would have decided otherwise.
    Differences(show::NameArgs),
    /// Shows what is in force, and what stands in for files.
    Status(show::StatusArgs),
    /// Shows the versions of a policy that are kept, with when and why they came and went.
    Versions(show::NameArgs),
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    match args.command {
        Command::Push(args) => push::run(args),
        Command::Rollback(args) => steer::roll_back(args),
        Command::Release(args) => steer::steer(&args, "release"),
        Command::Promote(args) => steer::steer(&args, "promote"),
        Command::Abandon(args) => steer::steer(&args, "abandon"),
        Command::Differences(args) => show::differences(args),
        Command::Status(args) => show::status(args),
        Command::Versions(args) => show::versions(args),
    }
}
