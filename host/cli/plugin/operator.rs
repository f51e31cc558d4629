//! `halley plugin rollback`, `release`, `promote` and `abandon`.

use reqwest::Method;

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::show::plugin_lines;
use crate::cli::{EXIT_SUCCESS, print, print_lines};

/// Arguments of `halley plugin rollback`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RollbackArgs {
    /// The plugin.
    name: String,
    /// The version to roll back to: a prefix of its hash, as shown by `halley plugin versions`.
    /// Default: the last one that neither failed nor was rolled back.
    #[arg(long, value_name = "HASH")]
    to: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// Arguments of the commands that only name a plugin.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PluginNameArgs {
    /// The plugin.
    name: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn roll_back(args: RollbackArgs) -> anyhow::Result<u8> {
    let to: Vec<(&str, String)> = args.to.into_iter().map(|to| ("to", to)).collect();
    post(&args.gateway, &args.name, "rollback", &to)
}

/// Sends the command that is the last segment of the path.
pub(super) fn post_command(args: &PluginNameArgs, what: &str) -> anyhow::Result<u8> {
    post(&args.gateway, &args.name, what, &[])
}

fn post(gateway: &GatewayArgs, name: &str, what: &str, query: &[(&str, String)]) -> anyhow::Result<u8> {
    let answer = gateway.send(Method::POST, &["plugins", name, what], |request| request.query(query))?;
    print_lines(plugin_lines(name, &answer["plugins"][name]));
    print(&format!("generation {} is active", answer["generation"]));
    Ok(EXIT_SUCCESS)
}
