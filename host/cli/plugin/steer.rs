//! `halley plugin rollback` and `release`: an operator's word about one plugin.

use reqwest::Method;

use crate::cli::plugin::gateway::Gateway;
use crate::cli::plugin::table::in_force;
use crate::cli::{SUCCESS, print, runtime};

/// Arguments of the commands about one plugin.
#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// The plugin's name.
    name: String,
    #[command(flatten)]
    gateway: Gateway,
}

/// Arguments of `halley plugin rollback`.
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    one: One,
    /// The version to go back to: the beginning of its hash, as `halley plugin versions` shows it.
    /// Without it, the last good version before the one in force.
    #[arg(long, value_name = "HASH")]
    to: Option<String>,
}

pub(super) fn rollback(args: Rollback) -> anyhow::Result<u8> {
    let to = args.to.map(|to| ("to", to));
    post(&args.one, "rollback", to)
}

pub(super) fn release(args: One) -> anyhow::Result<u8> {
    post(&args, "release", None)
}

fn post(one: &One, word: &str, query: Option<(&str, String)>) -> anyhow::Result<u8> {
    let word = async {
        let mut request = one.gateway.request(Method::POST, &["v1", "plugins", &one.name, word])?;
        if let Some(query) = query {
            request = request.query(&[query]);
        }
        one.gateway.exchange(request).await
    };
    let answer = runtime()?.block_on(word)?;
    print(&in_force(&answer));
    Ok(SUCCESS)
}
