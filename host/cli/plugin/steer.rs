//! `halley plugin rollback`, `release`, `promote` and `abandon`.

use reqwest::Method;

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::show::in_force;
use crate::cli::{SUCCESS, print, print_lines};

/// Arguments of `halley plugin rollback`.
#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    /// The plugin.
    name: String,
    /// The version to go back to: the first digits of its hash, as `halley plugin versions`
    /// shows it. Without it, the last one that did not fail and was not gone back from.
    #[arg(long, value_name = "HASH")]
    to: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// Arguments of the commands that name a plugin and nothing else.
#[derive(Debug, clap::Args)]
pub(super) struct NameArgs {
    /// The plugin.
    name: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn roll_back(args: RollbackArgs) -> anyhow::Result<u8> {
    let to: Vec<(&str, String)> = args.to.into_iter().map(|to| ("to", to)).collect();
    post(&args.gateway, &args.name, "rollback", &to)
}

/// Asks for what the last segment of the path names.
pub(super) fn steer(args: &NameArgs, what: &str) -> anyhow::Result<u8> {
    post(&args.gateway, &args.name, what, &[])
}

fn post(gateway: &GatewayArgs, name: &str, what: &str, query: &[(&str, String)]) -> anyhow::Result<u8> {
    let answer = gateway.send(Method::POST, &["plugins", name, what], |request| request.query(query))?;
    print_lines(in_force(name, &answer["plugins"][name]));
    print(&format!("generation {} is in force", answer["generation"]));
    Ok(SUCCESS)
}
