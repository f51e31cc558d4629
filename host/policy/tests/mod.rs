//! The engine with real guests: the misbehaving ones of `tests/guests`, and small ones in WAT.

mod batches;
mod budget;
mod idle;
mod printing;
mod released;
mod retention;
mod rooms_and_absent;
mod settings;
mod shadows;
mod steering;
mod strays;
mod swaps;
mod trials;
mod watching;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::message::{Audience, Header, Message, Origin, Record};
use crate::policy::{Metrics, OnError, PluginConfig, Policies, PolicyDependencies, PolicySet};
use crate::wasm::{Runtime, RuntimeConfig};

/// Where `make plugins` puts the guests.
pub(super) fn guest(name: &str) -> PathBuf {
    let folder = std::env::var_os("HALLEY_GUESTS").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join("guests").join("dist")
    });
    let path = folder.join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is missing; run `make plugins`", path.display());
    path
}

/// The version of a plugin's file, as metrics name it.
pub(super) fn hash_of(path: &Path) -> String {
    crate::digest::Digest::of(&std::fs::read(path).unwrap()).short()
}

/// The guest that does what message bodies tell it.
pub(super) fn unruly(name: &str) -> PluginConfig {
    // A generous deadline: a machine that is busy with other tests must not look like a slow plugin.
    PluginConfig { deadline: Duration::from_millis(500), ..PluginConfig::new(name, guest("unruly")) }
}

pub(super) fn with(config: PluginConfig, on_error: OnError) -> PluginConfig {
    PluginConfig { on_error: on_error.into(), ..config }
}

pub(super) fn configured(config: PluginConfig, json: serde_json::Value) -> PluginConfig {
    PluginConfig { config: json, ..config }
}

pub(super) struct Engine {
    pub(super) registry: Registry,
    pub(super) runtime: Arc<Runtime>,
    metrics: Metrics,
}

impl Engine {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let runtime = Runtime::new(&mut registry).unwrap();
        let metrics = Metrics::register(&mut registry);
        Self { registry, runtime, metrics }
    }

    pub(super) fn setup(&self) -> PolicyDependencies {
        PolicyDependencies {
            metrics: self.metrics.clone(),
            ..PolicyDependencies::new(Arc::clone(&self.runtime))
        }
    }

    pub(super) fn policies(&self, plugins: &[PluginConfig]) -> Arc<Policies> {
        Policies::start_with(self.setup(), plugins).unwrap()
    }

    pub(super) fn set(&self, plugins: &[PluginConfig]) -> Arc<PolicySet> {
        self.policies(plugins).current()
    }

    pub(super) fn refusal(&self, plugins: &[PluginConfig]) -> Vec<String> {
        let refused = Policies::start_with(self.setup(), plugins).unwrap_err();
        refused.problems.iter().map(ToString::to_string).collect()
    }

    pub(super) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// The value of the metric with this name and these labels.
    pub(super) fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map(|value| value.parse().unwrap())
    }
}

pub(super) fn room(body: &str) -> Message {
    message(Audience::Room("video_123".into()), body)
}

pub(super) fn keys(body: &str) -> Message {
    message(Audience::Keys { server: Some("comet-1".into()), keys: vec!["k1".into(), "k2".into()] }, body)
}

pub(super) fn message(audience: Audience, body: &str) -> Message {
    let record = Record {
        origin: Origin { topic: "push".into(), partition: 3, offset: 42 },
        timestamp_ms: Some(7),
        key: None,
        value: None,
        headers: vec![Header { name: "h".into(), value: None }],
        trusted: false,
    };
    Message {
        id: record.message_id(),
        record: Arc::new(record),
        audience,
        operation: 5,
        body: body.to_owned().into(),
    }
}
