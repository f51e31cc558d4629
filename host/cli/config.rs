//! `halley config`: the keys, their defaults, and what is active.

use clap::Subcommand;

use crate::cli::{ConfigArgs, EXIT_SUCCESS, print, print_json, print_styled};
use crate::config::{ActiveValue, Config};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prints the JSON schema of the configuration, for editors and tools that validate TOML.
    Schema,
    /// Prints a configuration file with every key, its default and its meaning.
    Default,
    /// Shows the active value of every key, and where it comes from. Secrets are masked.
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only values that the file or the environment sets.
    #[arg(long)]
    set: bool,
    /// Print JSON: a list of `{"key": [...], "value": ..., "source": "file:line" | null}`.
    #[arg(long)]
    json: bool,
}

/// The example shows every key with its default; a test holds it equal to the defaults.
const WITH_DEFAULTS: &str = include_str!("../../examples/halley.toml");

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Schema => print_json(&serde_json::to_string_pretty(&schemars::schema_for!(Config))?),
        Command::Default => print_styled(WITH_DEFAULTS.trim_end()),
        Command::Show(args) => show(&args)?,
    }
    Ok(EXIT_SUCCESS)
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let mut values = config.active_values(args.config.file().as_deref())?;
    values.retain(|value| !args.set || value.source.is_some());
    if args.json {
        print_json(&serde_json::to_string_pretty(&values)?);
        return Ok(());
    }
    let mut section: Option<&[String]> = None;
    for ActiveValue { key, value, source } in &values {
        let Some((name, parents)) = key.split_last() else { continue };
        if section != Some(parents) {
            if section.is_some() {
                print("");
            }
            print(&format!("[{}]", dotted(parents)));
            section = Some(parents);
        }
        let line = format!("{} = {}", quoted(name), value);
        print(&format!("{line:<50} # {}", source.as_deref().unwrap_or("default")));
    }
    Ok(())
}

fn dotted(path: &[String]) -> String {
    path.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(".")
}

/// A key as TOML has it: bare, or in quotes. JSON writes texts, numbers and lists of them as TOML does.
fn quoted(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => serde_json::Value::from(key).to_string(),
    }
}
