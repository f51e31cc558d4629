//! `halley plugin`: for the people who write policies (`author`), and for the ones who run them
//! (the other files, one for each group of commands).

mod author;
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
    /// Makes a project for a policy of your own, which builds and is tested as it is.
    New(author::new::Args),
    /// Builds a policy to WebAssembly, and checks that a gateway would take it.
    ///
    /// It takes the wasm32-unknown-unknown target where it is installed, has rustup install it, or
    /// takes Debian's packages where they are, and says which; where none is there, it says what to install.
    /// HALLEY_GUEST_TARGET names another folder for what cargo leaves.
    Build(author::build::Args),
    /// Asks a policy what the cases beside it ask, and compares the answers.
    Test(author::test::Args),
    /// Asks a policy about messages from a file or standard input, and prints its answers.
    Run(author::run::Args),
    /// Measures what a policy costs a message, beside one that does nothing.
    Bench(author::bench::Args),
    /// Shows what is in a policy's file: hooks, imports, contract, size, hash, capabilities.
    Inspect(author::inspect::Args),
    /// Builds and tests a policy whenever its source changes, and pushes it into a gateway.
    Dev(author::dev::Args),
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
        Command::New(args) => author::new::run(args),
        Command::Build(args) => author::build::run(args),
        Command::Test(args) => author::test::run(args),
        Command::Run(args) => author::run::run(args),
        Command::Bench(args) => author::bench::run(args),
        Command::Inspect(args) => author::inspect::run(args),
        Command::Dev(args) => author::dev::run(args),
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
