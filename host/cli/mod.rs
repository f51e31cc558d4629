//! The command line: one file per command.

mod check;
mod dead_letter;
mod demo;
mod explain;
mod plugin;
mod replay;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything went as asked.
pub const SUCCESS: u8 = 0;
/// The command ran and failed, or left work unfinished.
pub const FAILURE: u8 = 1;
/// The command line or the configuration is wrong.
pub const MISTAKE: u8 = 2;

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
    /// Changes the policies of a running gateway, and looks at them.
    Plugin(plugin::Args),
    /// Runs recorded traffic through a policy, and shows what it would have decided.
    Replay(replay::Args),
    /// Lists what could not be delivered, and brings it back once what was wrong is mended.
    DeadLetter(dead_letter::Args),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// The configuration file (TOML). Without it, defaults and the environment
    /// (HALLEY__SECTION__KEY) apply.
    #[arg(long, short, value_name = "FILE", env = "HALLEY_CONFIG")]
    config: Option<PathBuf>,
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
        };
        let code = done.unwrap_or_else(|error| {
            fail(&format!("{error:#}"));
            FAILURE
        });
        ExitCode::from(code)
    }
}

/// Prints to standard output, which is what a command's answer is for. A closed pipe
/// (`halley explain | head`) is no error.
fn print(text: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// Prints an error to standard error.
fn fail(text: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "halley: {text}"));
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
