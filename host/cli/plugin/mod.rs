//! `halley plugin`: commands for policy authors (`author`), and for operators (the other files, one
//! per group of commands).

mod author;
mod client;
mod fetch;
mod operator;
mod push;
mod settings;
mod show;
mod sign;
mod signing;
mod verify;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Creates a project for a policy, which builds and passes its tests.
    New(author::new::Args),
    /// Builds a policy to WebAssembly, and checks that a gateway would accept it.
    ///
    /// Uses the wasm32-unknown-unknown target if it is installed, else installs it with rustup, else
    /// uses Debian's packages, and prints which. If none is available, it prints what to install.
    /// HALLEY_GUEST_TARGET sets another directory for cargo's output.
    Build(author::build::Args),
    /// Runs a policy's test cases.
    ///
    /// A case has a configuration, inputs and expected answers. The inputs of a case run in order on
    /// a fresh instance: those for `filter` first, then `offline`, then `grouping`. Guards are shown
    /// and not claimed. The clock is fixed; `at` in a message sets it.
    Test(author::test::Args),
    /// Runs a policy on messages from a file or standard input, and prints its answers.
    ///
    /// Each line is one input in JSON. A message for `filter`, such as
    ///
    ///   {"room": "r", "body": "hello"}
    ///   {"keys": ["ann"], "operation": 7, "headers": {"lang": "en"}, "body_base64": "/w=="}
    ///   {"everyone": true, "body": "hello", "at": "2026-01-31T22:00:00Z"}
    ///
    /// (`at` is when it was produced, and the time on the policy's clock), an absent user for
    /// `offline`, or a room for `grouping`:
    ///
    ///   {"message": {"keys": ["ann"]}, "absent": {"user": "ann", "cause": "not-online"}}
    ///   {"room": "r", "connections": [{"id": "c1", "comet": "10.0.0.1:50051", "user": "ann"}]}
    ///
    /// The policy's log, and its own counters and gauges at the end, go to standard error. The exit
    /// code is 1 if it failed on an input, 2 if a line is invalid.
    #[command(verbatim_doc_comment)]
    Run(author::run::Args),
    /// Prints the contract between policies and gateways (WIT), for bindings generators.
    Wit(author::wit::Args),
    /// Measures the cost of a policy per message, compared with one that does nothing.
    ///
    /// Each hook is measured as the gateway calls it: `filter` by messages per batch, `offline` by
    /// absent users, `grouping` by connections per room. The policy and one that does nothing run
    /// alternately, so that a busy machine slows both. Figures are medians.
    Bench(author::bench::Args),
    /// Shows the contents of a policy's file: hooks, imports, contract, size, hash, capabilities, settings.
    Inspect(author::inspect::Args),
    /// Builds and tests a policy whenever its source changes, and optionally pushes it to a gateway.
    ///
    /// Runs until Ctrl-C. A build that fails, or fails its cases, is discarded: what was pushed
    /// before stays active.
    Dev(author::dev::Args),
    /// Signs a version of a policy with the plugin's name and a version number.
    ///
    /// Writes FILE.sig, which gateways with `[policies] trusted_keys` require. The number must
    /// increase with every version: a gateway accepts none below the highest that was active there.
    Sign(sign::Args),
    /// Publishes a policy in an OCI registry, with its signature, and prints the reference for `path` of
    /// a `[[plugin]]`.
    ///
    /// What a gateway would refuse is not published. Annotations of the manifest state the name and the
    /// version that were signed, the contract, the hooks, and the schema of the settings if it has at most 8 KiB. Credentials are those of `docker login`.
    Publish(author::publish::Args),
    /// Fetches a policy from an OCI registry, and its signature.
    Fetch(fetch::Args),
    /// Checks who signed a policy, as gateways with `[policies] trusted_keys` do: exit code 0, or 1 with
    /// the reason.
    Verify(verify::Args),
    /// Activates new versions of policies in a running gateway, all of them or none.
    ///
    /// They are compiled, checked and tried before anything changes; if one is refused, nothing
    /// changes. A pushed version decides until the plugin's file changes, or until it is rolled back
    /// or released. With `[policies] state_dir` it survives a restart.
    Push(push::Args),
    /// Rolls a policy back: to its last known-good version, or to a given one.
    Rollback(operator::RollbackArgs),
    /// Ends a push, a rollback or a quarantine: the policy's file decides again.
    Release(operator::PluginNameArgs),
    /// Promotes the candidate: it decides from now on, until the policy's file changes.
    Promote(operator::PluginNameArgs),
    /// Ends a rollout: the candidate is removed, and tried again only if its content changes.
    Abandon(operator::PluginNameArgs),
    /// Shows what a shadow would have decided differently.
    Differences(show::ShowArgs),
    /// Shows the active policies and the overrides of their files.
    Status(show::StatusArgs),
    /// Shows the settings of an active policy: their types, defaults and descriptions, if it describes them.
    Settings(settings::Args),
    /// Shows the stored versions of a policy, with their activations and deactivations.
    Versions(show::ShowArgs),
}

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::New(args) => author::new::run(args),
        Command::Build(args) => author::build::run(args),
        Command::Test(args) => author::test::run(args),
        Command::Run(args) => author::run::run(args),
        Command::Wit(args) => author::wit::run(args),
        Command::Bench(args) => author::bench::run(args),
        Command::Inspect(args) => author::inspect::run(args),
        Command::Dev(args) => author::dev::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Publish(args) => author::publish::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Push(args) => push::run(args),
        Command::Rollback(args) => operator::roll_back(args),
        Command::Release(args) => operator::post_command(&args, "release"),
        Command::Promote(args) => operator::post_command(&args, "promote"),
        Command::Abandon(args) => operator::post_command(&args, "abandon"),
        Command::Differences(args) => show::differences(args),
        Command::Status(args) => show::status(args),
        Command::Settings(args) => settings::run(args),
        Command::Versions(args) => show::versions(args),
    }
}
