//! stub
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::policy::config::PluginConfig;
use crate::policy::policies::Policies;

/// Reads what is wanted: the plugins, and the paths to watch.
pub type Files = dyn Fn() -> anyhow::Result<(Vec<PluginConfig>, Vec<PathBuf>)> + Send + Sync;

/// Where the wanted plugins come from.
pub struct Sources {
    /// Reads the configuration again and yields the wanted plugins, and what to watch: the
    /// configuration file, the plugins' files, the plugin directory.
    pub files: Box<Files>,
    /// How often everything is looked at again without an event.
    pub rescan: Duration,
}

/// Swaps the policies when their files change.
pub async fn watch(_policies: Arc<Policies>, _sources: Sources, shutdown: CancellationToken) {
    shutdown.cancelled().await;
}
