//! `halley completions` and `halley man`: what package builders and shells need.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Command;

use crate::cli::{EXIT_SUCCESS, OrUsage as _, VERSION, print, print_styled};

/// Arguments of `halley completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `halley man`.
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The directory to write to; it is created if needed.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// The command line without what is not for people. Completions would offer it otherwise.
fn visible(halley: &Command) -> Command {
    let shown = halley.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let about = halley.get_about().cloned().unwrap_or_default();
    Command::new("halley").about(about).version(VERSION).propagate_version(true).subcommands(shown)
}

/// `halley` is the whole command line.
pub(super) fn completions(args: &CompletionsArgs, halley: Command) -> anyhow::Result<u8> {
    let mut halley = visible(&halley);
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut halley, "halley", &mut script);
    print_styled(String::from_utf8(script)?.trim_end());
    Ok(EXIT_SUCCESS)
}

/// `halley` is the whole command line.
pub(super) fn man(args: &ManArgs, halley: Command) -> anyhow::Result<u8> {
    let directory = &args.directory;
    let cannot = || format!("cannot write to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(cannot).or_usage()?;
    clap_mangen::generate_to(visible(&halley), directory).with_context(cannot)?;
    print(&format!("{}: halley.1 and a page for each command", directory.display()));
    Ok(EXIT_SUCCESS)
}
