//! `halley plugin rollback` and `release`.

use reqwest::Method;

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::show::in_force;
use crate::cli::{SUCCESS, print};

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

/// Arguments of `halley plugin release`.
#[derive(Debug, clap::Args)]
pub(super) struct ReleaseArgs {
    /// The plugin.
    name: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn roll_back(args: RollbackArgs) -> anyhow::Result<u8> {
    let to: Vec<(&str, String)> = args.to.into_iter().map(|to| ("to", to)).collect();
    steer(&args.gateway, &args.name, "rollback", &to)
}

pub(super) fn release(args: ReleaseArgs) -> anyhow::Result<u8> {
    steer(&args.gateway, &args.name, "release", &[])
}

fn steer(gateway: &GatewayArgs, name: &str, what: &str, query: &[(&str, String)]) -> anyhow::Result<u8> {
    let path = ["plugins", name, what];
    let answer = gateway.send(Method::POST, &path, |request| with_query(request, query))?;
    print(&in_force(name, &answer["plugins"][name]));
    print(&format!("generation {} is in force", answer["generation"]));
    Ok(SUCCESS)
}

fn with_query(request: reqwest::RequestBuilder, query: &[(&str, String)]) -> reqwest::RequestBuilder {
    request.query(query)
}
