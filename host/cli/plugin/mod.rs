//! `halley plugin`: policies of a running gateway. One file per command.

mod gateway;
mod push;
mod show;
mod steer;
mod table;

use clap::Subcommand;

/// Arguments of `halley plugin`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts new versions of plugins in force in a running gateway, together or not at all.
    Push(push::Args),
    /// Goes back to an earlier version of a plugin.
    Rollback(steer::Rollback),
    /// Ends a push, a rollback or a quarantine: the plugin's file decides again.
    Release(steer::One),
    /// Shows the plugins in force, and what stands in for their files.
    Status(show::Status),
    /// Shows the versions that are kept of a plugin, when they came and went, and why.
    Versions(show::One),
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    match args.command {
        Command::Push(args) => push::run(args),
        Command::Rollback(args) => steer::rollback(args),
        Command::Release(args) => steer::release(args),
        Command::Status(args) => show::status(args),
        Command::Versions(args) => show::versions(args),
    }
}
