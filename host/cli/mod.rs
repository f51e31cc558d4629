//! The command line: one file per command.

mod archive;
mod bench;
mod check;
mod client_tls;
mod common;
mod compile_plugin;
mod config;
mod dead_letter;
mod demo;
mod explain;
mod generate;
mod health;
mod history;
mod inbox;
mod message_spec;
mod offsets;
mod output;
mod page_args;
mod plugin;
mod replay;
mod run;
mod service_manager;
mod signals;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use dead_letter::fuzzing::check as check_dead_letter;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use common::{
    ConfigArgs, LARGEST_INPUT, OrUsage, VERSION, block_on, plugin_name_of, read_input, runtime, usage,
};
pub use common::{EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE};
use output::{fail, print, print_json, print_lines, print_styled};

/// A routing gateway for push systems: Kafka to comets through hot-swapped policies.
#[derive(Debug, Parser)]
#[command(name = "halley", version = VERSION, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway until SIGTERM or Ctrl-C, then drains.
    Run(run::Args),
    /// Runs a complete demo in one process, with nothing to install.
    Demo(demo::Args),
    /// Checks configuration and plugins without starting, and reports every mistake.
    Check(check::Args),
    /// Checks that the gateway on this machine is ready, for health checks: exit code 0, or 1 with the
    /// reasons.
    Health(health::Args),
    /// Shows where a message would go, and why, without sending it.
    Explain(explain::Args),
    /// Creates, builds, tests and benchmarks policies; changes those of a running gateway.
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Replays recorded traffic through a policy, and shows its decisions.
    ///
    /// Every message goes through this plugin only, in the order of its partition and in batches of
    /// `[delivery] max_batch`. Only decisions of `filter` are compared: those of `grouping` and
    /// `offline` depend on who is online at that moment. Guards (`once`) are counted and not claimed.
    /// The plugin's clock is the current time and its state begins empty: a policy that counts over
    /// time decides as if everything arrived at once.
    Replay(replay::Args),
    /// Puts load on a running gateway: acts as producers and comets, and counts what is lost, repeated,
    /// out of order, and how late.
    Bench(bench::Args),
    /// Lists messages that could not be delivered, and redrives them once the cause is fixed.
    #[command(subcommand)]
    DeadLetter(dead_letter::Command),
    /// Reads, replays, acknowledges and deletes what absent users have missed.
    #[command(subcommand)]
    Inbox(inbox::Command),
    /// Reads the messages of rooms whose history is kept.
    #[command(subcommand)]
    History(history::Command),
    /// Archives stored messages in MySQL until SIGTERM or Ctrl-C; creates the tables.
    Archive(archive::Args),
    /// Moves the consumer group past records that cannot be read.
    #[command(subcommand)]
    Offsets(offsets::Command),
    /// Prints the configuration's schema, its defaults, and what is active.
    #[command(subcommand)]
    Config(config::Command),
    /// Prints the completions of a shell.
    Completions(generate::CompletionsArgs),
    /// Writes manual pages.
    Man(generate::ManArgs),
    /// Compiles one plugin for the gateway that starts this process.
    #[command(hide = true)]
    CompilePlugin(compile_plugin::Args),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Run(args) => run::run(args),
            Command::Demo(args) => demo::run(args),
            Command::Check(args) => check::run(args),
            Command::Health(args) => health::run(args),
            Command::Explain(args) => explain::run(args),
            Command::Plugin(command) => plugin::run(command),
            Command::Replay(args) => replay::run(args),
            Command::Bench(args) => bench::run(args),
            Command::DeadLetter(command) => dead_letter::run(command),
            Command::Inbox(command) => inbox::run(command),
            Command::History(command) => history::run(command),
            Command::Archive(args) => archive::run(args),
            Command::Offsets(command) => offsets::run(command),
            Command::Config(command) => config::run(command),
            Command::Completions(args) => generate::completions(&args, Self::command()),
            Command::Man(args) => generate::man(&args, Self::command()),
            Command::CompilePlugin(args) => compile_plugin::run(args),
        };
        let code = done.unwrap_or_else(|error| {
            fail(&common::with_causes(&error));
            common::code_of(&error)
        });
        finish(code)
    }
}

/// Prints clap's output instead of running a command: help, the version, or an argument error. Like
/// every answer, it has to be written completely.
pub fn print_clap_error(said: &clap::Error) -> ExitCode {
    if said.use_stderr() {
        drop(said.print());
        return ExitCode::from(EXIT_USAGE);
    }
    output::printed(said.print());
    finish(EXIT_SUCCESS)
}

/// Flushes the output; the exit code reflects a failure to do so.
fn finish(code: u8) -> ExitCode {
    let Some(why) = output::finish() else { return ExitCode::from(code) };
    fail(&format!("cannot write to standard output: {why}"));
    ExitCode::from(code.max(EXIT_FAILURE))
}
