//! The command line: one file per command.

mod check;
mod compile_plugin;
mod dead_letter;
mod demo;
mod draft;
mod explain;
mod fleet;
mod offsets;
mod open_files;
mod output;
mod plugin;
mod replay;
mod run;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use dead_letter::fuzzing::check as check_dead_letter;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::{fail, print, print_json, print_lines, print_styled};

/// Everything went as asked.
pub const SUCCESS: u8 = 0;
/// The command ran and failed, or left work unfinished.
pub const FAILURE: u8 = 1;
/// The command line or the configuration is wrong.
pub const MISTAKE: u8 = 2;
/// The largest file that is read because it was named on the command line, in bytes.
const LARGEST_INPUT: u64 = 256 * 1024 * 1024;

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

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// The configuration file (TOML). Without it `./halley.toml`, where there is one, or else the
    /// defaults.
    ///
    /// The environment goes over the file: HALLEY__SECTION__KEY, its value text, or a number, a list
    /// or a table as TOML has them: HALLEY__KAFKA__GROUP=halley-2,
    /// HALLEY__KAFKA__TOPICS='["push", "push-2"]',
    /// HALLEY__KAFKA__PROPERTIES='{ "security.protocol" = "SSL" }' (instead of the file's whole table).
    #[arg(long, short, value_name = "FILE", env = "HALLEY_CONFIG")]
    config: Option<PathBuf>,
}

/// What is taken where no file is named.
const USUAL_FILE: &str = "halley.toml";

impl ConfigArgs {
    /// The file to read; none when there is none.
    fn file(&self) -> Option<PathBuf> {
        let usual = || Some(PathBuf::from(USUAL_FILE)).filter(|file| file.exists());
        self.config.clone().or_else(usual)
    }

    /// What the configuration is read from, for people.
    fn source(&self) -> String {
        match (self.file(), &self.config) {
            (Some(file), Some(_)) => file.display().to_string(),
            (Some(file), None) => format!("./{}", file.display()),
            (None, _) => "no file, only defaults and the environment".to_owned(),
        }
    }
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

/// Which plugin a file is for, by its name: the one of these that is called as the file is, or with
/// `-` for `_` where only that is known. Else as the file is called.
fn plugin_of<'a>(file: &Path, mut known: impl Iterator<Item = &'a str> + Clone) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let dashed = stem.replace('_', "-");
    let is_known = known.clone().any(|name| name == stem);
    if !is_known && known.any(|name| name == dashed) { dashed } else { stem }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_for_the_plugin_of_its_name() {
        let name = |file: &str| plugin_of(Path::new(file), ["keyword-filter", "a_b"].into_iter());
        assert_eq!(name("x/keyword_filter.wasm"), "keyword-filter");
        assert_eq!(name("a_b.wasm"), "a_b");
        assert_eq!(name("un_known.wasm"), "un_known");
    }
}
