//! What the commands share: whose inbox it is, and where it is.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::cli::{ConfigArgs, OrUsage as _, usage};
use crate::config::Config;
use crate::gateway::Storage;
use crate::inbox::{Cursor, DeviceId, InboxReader, Unavailable};
use crate::message::UserId;

/// Whose inbox, and how it is shown.
#[derive(Debug, clap::Args)]
pub(super) struct InboxArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The user's id.
    user: String,
    /// Prints JSON, as the HTTP API does.
    #[arg(long)]
    pub(super) json: bool,
}

impl InboxArgs {
    pub(super) fn user(&self) -> UserId {
        self.user.as_str().into()
    }

    pub(super) fn cursor(&self, option: &str, text: Option<&str>) -> anyhow::Result<Option<Cursor>> {
        let decode = |text| Cursor::decode(text, &self.user());
        text.map(decode).transpose().map_err(|why| anyhow::anyhow!("{option}: {why}")).or_usage()
    }
}

pub(super) fn device(text: &str) -> anyhow::Result<DeviceId> {
    DeviceId::new(text).map_err(|why| anyhow::anyhow!("--device: {why}")).or_usage()
}

/// The storage that the configuration names.
pub(super) fn storage(config: &Config) -> anyhow::Result<Storage> {
    if config.redis.is_memory() {
        return usage(
            "`[redis] url` is memory://: those inboxes are in the gateway's memory; use its `[api]`",
        );
    }
    Storage::open(config, &mut Registry::default())
}

pub(super) fn reader(config: &Config) -> anyhow::Result<Arc<dyn InboxReader>> {
    Ok(storage(config)?.inbox_reader)
}

/// Redis cannot be used: what to check.
pub(super) fn unavailable(why: Unavailable) -> anyhow::Error {
    anyhow::anyhow!("{why}; check `[redis] url`, and that the user may run XRANGE, XLEN, ZADD and ZSCORE")
}
