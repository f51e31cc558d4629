//! The command line: one file per command.

mod check;
mod common;
mod compile_plugin;
mod dead_letter;
mod demo;
mod draft;
mod explain;
mod offsets;
mod output;
mod plugin;
mod replay;
mod run;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use dead_letter::fuzzing::check as check_dead_letter;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use common::{ConfigArgs, LARGEST_INPUT, plugin_of, runtime};
pub use common::{FAILURE, MISTAKE, SUCCESS};
use output::{fail, print, print_json, print_lines, print_styled};

/// A routing gateway for push systems: Kafka to comets through hot-swapped policies.
#[derive(Debug, Parser)]
#[command(name = "halley", version = VERSION, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("HALLEY_REVISION"), ")");

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway until SIGTERM or Ctrl-C, then drains.
    Run(run::Args),
    /// Shows the whole thing in one process, with nothing to install.
    Demo(demo::Args),
    /// Checks configuration and plugins without starting, and names every mistake.
    Check(check::Args),
    /// Shows where a message would go, and why, without sending it.
    Explain(explain::Args),
    /// Makes, builds, tests and measures policies; changes the ones of a running gateway.
    Plugin(plugin::Args),
    /// Runs recorded traffic through a policy, and shows what it would have decided.
    ///
    /// Every message goes through the plugin alone, in the order of its partition and in batches of
    /// `[delivery] max_batch`. Only decisions of `filter` are compared: what `grouping` and `offline`
    /// decide depends on who is where at that moment. Guards (`once`) are counted and not claimed,
    /// the plugin's clock is that of now, and its state begins empty: a policy that counts over time
    /// decides here as if everything came at once.
    Replay(replay::Args),
    /// Lists what could not be delivered, and brings it back once what was wrong is mended.
    DeadLetter(dead_letter::Args),
    /// Takes the consumer group past what cannot be read.
    Offsets(offsets::Args),
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
            Command::Explain(args) => explain::run(args),
            Command::Plugin(args) => plugin::run(args),
            Command::Replay(args) => replay::run(args),
            Command::DeadLetter(args) => dead_letter::run(args),
            Command::Offsets(args) => offsets::run(args),
            Command::CompilePlugin(args) => compile_plugin::run(args),
        };
        let code = done.unwrap_or_else(|error| {
            fail(&format!("{error:#}"));
            FAILURE
        });
        finish(code)
    }
}

/// Prints what clap has to say instead of running a command: help, the version, what is wrong with
/// the arguments. Like every answer, it has to arrive.
pub fn say(said: &clap::Error) -> ExitCode {
    if said.use_stderr() {
        drop(said.print());
        return ExitCode::from(MISTAKE);
    }
    output::printed(said.print());
    finish(SUCCESS)
}

/// Writes out what is still buffered; the exit code with what became of that.
fn finish(code: u8) -> ExitCode {
    let Some(why) = output::finish() else { return ExitCode::from(code) };
    fail(&format!("cannot write to standard output: {why}"));
    ExitCode::from(code.max(FAILURE))
}
