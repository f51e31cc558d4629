//! `halley plugin`: for the people who write policies (`author`), and for the ones who run them
//! (the other files, one for each group of commands).

mod author;
mod client;
mod push;
mod show;
mod sign;
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
    ///
    /// A case is a configuration, questions and answers. Its questions are asked one after the other of
    /// a fresh instance, the ones to `filter` first, then `offline`, then `grouping`; guards are shown
    /// and not claimed. The clock stands still: `at` in a message sets it.
    Test(author::test::Args),
    /// Asks a policy about messages from a file or standard input, and prints its answers.
    ///
    /// Each line is a question in JSON: a message for `filter`, such as
    ///
    ///   {"room": "r", "body": "hello"}
    ///   {"keys": ["ann"], "operation": 7, "headers": {"lang": "en"}, "body_base64": "/w=="}
    ///   {"everyone": true, "body": "hello", "at": "2026-01-31T22:00:00Z"}
    ///
    /// (`at` is when it was produced, and what the clock says), somebody who is away for `offline`, or a
    /// room for `grouping`:
    ///
    ///   {"message": {"keys": ["ann"]}, "absent": {"user": "ann", "cause": "not-online"}}
    ///   {"room": "r", "connections": [{"id": "c1", "comet": "10.0.0.1:50051", "user": "ann"}]}
    ///
    /// What the policy logs, and its own counters and gauges at the end, go to standard error. The exit
    /// code is 1 when it failed on a question, 2 when a line makes no sense.
    #[command(verbatim_doc_comment)]
    Run(author::run::Args),
    /// Prints the contract between policies and gateways (WIT), for generators of bindings.
    Wit(author::wit::Args),
    /// Measures what a policy costs a message, beside one that does nothing.
    ///
    /// Each hook is measured as the gateway calls it: `filter` by messages in a batch, `offline` by the
    /// users that are away, `grouping` by the connections in a room. The policy and one that does
    /// nothing take turns, so that a busy machine slows both; figures are medians.
    Bench(author::bench::Args),
    /// Shows what is in a policy's file: hooks, imports, contract, size, hash, capabilities.
    Inspect(author::inspect::Args),
    /// Builds and tests a policy whenever its source changes, and pushes it into a gateway.
    ///
    /// Runs until Ctrl-C. What does not build, or fails its cases, goes nowhere: what was pushed before
    /// stays in force.
    Dev(author::dev::Args),
    /// Signs a version of a policy: for which plugin it is, and its number.
    ///
    /// Writes FILE.sig, which gateways with `[policies] trusted_keys` ask for. The number rises with
    /// every version: a gateway takes none below the highest that was active there.
    Sign(sign::Args),
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
        Command::Wit(args) => author::wit::run(args),
        Command::Bench(args) => author::bench::run(args),
        Command::Inspect(args) => author::inspect::run(args),
        Command::Dev(args) => author::dev::run(args),
        Command::Sign(args) => sign::run(args),
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
