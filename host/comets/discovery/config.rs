//! `[comets.discovery]`: comets that come and go while the gateway runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use smart_default::SmartDefault;

use crate::mistake::{Mistake, mistake};
use crate::schema;

/// `[comets.discovery]`: comets that come and go while the gateway runs.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A watched file, TOML or JSON, with further `nodes` and `addresses`. A file that cannot be
    /// read, or that lists no comet, changes nothing.
    pub file: Option<PathBuf>,
    /// URLs of a goim discovery (bilibili/discovery), such as `http://discovery:7171`. The next one
    /// is used when one does not answer. Instances with a `grpc://` address are comets; their
    /// `hostname` is what producers put into `server`.
    pub goim: Vec<String>,
    /// The name under which comets register there.
    #[default("goim.comet")]
    pub appid: String,
    /// The environment that they register in.
    #[default("dev")]
    pub env: String,
    /// Only comets of this zone; empty means all zones.
    pub zone: String,
    /// How often the file and the discovery are read.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub refresh_interval: Duration,
}

impl Config {
    /// Whether no source is configured.
    pub fn is_empty(&self) -> bool {
        self.file.is_none() && self.goim.is_empty()
    }

    /// Resolves relative paths against this folder.
    pub fn resolve_paths(&mut self, base: &Path) {
        if let Some(file) = &mut self.file {
            *file = base.join(&*file);
        }
    }

    /// What is wrong with the file's current content. Reads the file.
    pub fn file_problem(&self) -> Option<Mistake> {
        let path = self.file.as_ref()?;
        let error = super::file::read(path).and_then(super::listing::CometListing::checked).err()?;
        Some(mistake!("comets.discovery.file", ": {}: {error}", path.display()))
    }

    /// Mistakes in the values, one sentence each.
    pub(in crate::comets) fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        for url in &self.goim {
            let is_http = reqwest::Url::parse(url).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()
            });
            if !is_http {
                problems.push(mistake!(
                    "comets.discovery.goim",
                    ": {url:?} is not a URL such as \"http://discovery:7171\""
                ));
            }
        }
        for (key, value) in [("appid", &self.appid), ("env", &self.env)] {
            if !self.goim.is_empty() && value.is_empty() {
                problems.push(mistake!("comets.discovery.{key}", "is empty; discovery needs one"));
            }
        }
        if self.refresh_interval < Duration::from_millis(100) {
            problems
                .push(mistake!("comets.discovery.refresh_interval", "is too short; use at least \"100ms\""));
        }
        problems
    }
}
