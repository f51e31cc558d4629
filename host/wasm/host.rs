//! What the gateway offers to plugins: the functions of WIT `host`, an empty WASI world, and a limit
//! on memory.
//!
//! Every function here is short and never waits. Its time counts against the deadline of the call
//! that it belongs to: the clock keeps running, and the plugin is interrupted as soon as it
//! continues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::ResourceLimiter;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::decision::PluginVersion;
use crate::telemetry::LogThrottle;
use crate::wasm::bindings::halley::policy::{host, types};
use crate::wasm::clock::Clock;
use crate::wasm::failure::PluginLimit;
use crate::wasm::metrics::{MAX_CUSTOM_METRICS, MAX_CUSTOM_NAME_LENGTH, PluginMetrics};
use crate::wasm::output::GuestOutput;
use crate::wasm::shared::SharedStateSession;
use crate::wasm::state::LocalState;

/// The longest line that a plugin may log, in bytes; the rest is truncated.
const MAX_LOG_LINE: usize = 4096;
/// The maximum number of elements of one table.
const MAX_TABLE: usize = 1_000_000;
/// The size of a table element, in bytes.
const TABLE_ELEMENT: usize = 8;
/// The maximum number of WASI resources of one instance.
const MAX_RESOURCES: usize = 1024;

/// What all instances of one prepared plugin share.
#[derive(Debug)]
pub(crate) struct PluginContext {
    pub(crate) version: PluginVersion,
    /// The plugin's `config` table as JSON.
    pub(crate) config: String,
    pub(crate) metrics: PluginMetrics,
    /// The state of the plugin's name.
    pub(crate) state: Arc<LocalState>,
    /// Throttles the plugin's own lines.
    pub(crate) log: LogThrottle,
    /// Throttles our lines about the plugin's failures.
    pub(crate) failure_log: LogThrottle,
    /// Throttles our lines about workers that do not call it.
    pub(crate) over_budget: LogThrottle,
    /// Whether the limit on its metrics has been logged.
    pub(crate) logged_metrics_limit: AtomicBool,
    pub(crate) clock: Clock,
    /// Whether the plugin's own metrics and log are discarded: it is a shadow.
    pub(crate) silent: bool,
}

impl PluginContext {
    /// Logs a line of the plugin, unless there were too many recently.
    fn log_line(&self, level: host::Level, message: &str) {
        let admitted = self.log.admit();
        if admitted.is_none() || message.len() > MAX_LOG_LINE {
            self.metrics.hit(PluginLimit::Log);
        }
        let Some(missed) = admitted else { return };
        let plugin = &self.version;
        let line = cut(message, MAX_LOG_LINE).replace(char::is_control, " ");
        if missed > 0 {
            tracing::warn!(target: "halley::plugin", %plugin, missed, "lines of the plugin were dropped");
        }
        match level {
            host::Level::Trace => tracing::trace!(target: "halley::plugin", %plugin, "{line}"),
            host::Level::Debug => tracing::debug!(target: "halley::plugin", %plugin, "{line}"),
            host::Level::Info => tracing::info!(target: "halley::plugin", %plugin, "{line}"),
            host::Level::Warn => tracing::warn!(target: "halley::plugin", %plugin, "{line}"),
            host::Level::Error => tracing::error!(target: "halley::plugin", %plugin, "{line}"),
        }
    }

    fn log_metrics_limit(&self, name: &str) {
        self.metrics.hit(PluginLimit::Metrics);
        if !self.logged_metrics_limit.swap(true, Ordering::Relaxed) {
            let plugin = &self.version;
            tracing::warn!(
                target: "halley::plugin",
                %plugin,
                name = cut(name, MAX_CUSTOM_NAME_LENGTH),
                "a metric of the plugin is dropped: names are 1 to {MAX_CUSTOM_NAME_LENGTH} bytes, \
                 and at most {MAX_CUSTOM_METRICS} of a kind"
            );
        }
    }
}

/// The data of one store: the host's side of one instance.
pub(crate) struct HostState {
    context: Arc<PluginContext>,
    /// With `state = "shared"`: the plugin's shared state.
    pub(crate) shared: Option<Arc<SharedStateSession>>,
    pub(crate) memory: InstanceMemory,
    stdout: GuestOutput,
    stderr: GuestOutput,
    wasi: WasiCtx,
    resources: ResourceTable,
}

impl HostState {
    /// For an instance with this memory limit, in bytes.
    pub(crate) fn new(context: Arc<PluginContext>, memory: usize) -> Self {
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(MAX_RESOURCES);
        let (stdout, stderr) = (GuestOutput::default(), GuestOutput::default());
        // An empty world: no files, no network, no environment, no arguments. Output goes to the
        // plugin's log.
        let wasi = WasiCtxBuilder::new()
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(64 * 1024)
            .stdout(stdout.clone())
            .stderr(stderr.clone())
            .build();
        let memory =
            InstanceMemory { limit: memory, used: 0, refused: false, address_space_exhausted: false };
        Self { context, shared: None, memory, stdout, stderr, wasi, resources }
    }

    /// Whether the plugin's log and metrics are discarded: it is a shadow, or it will be called
    /// again.
    fn is_silent(&self) -> bool {
        self.context.silent || self.shared.as_ref().is_some_and(|shared| shared.needs_refetch())
    }
}

impl HostState {
    /// Writes what the guest has printed to the plugin's log. Returns what it wrote to its standard
    /// error.
    pub(crate) fn log_output(&self) -> Option<String> {
        let levels = [(&self.stdout, host::Level::Info), (&self.stderr, host::Level::Warn)];
        let [_, error] = levels.map(|(output, level)| {
            let (text, is_cut) = output.take()?;
            if is_cut {
                self.context.metrics.hit(PluginLimit::Log);
            }
            if !self.is_silent() {
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                lines.for_each(|line| self.context.log_line(level, line));
            }
            Some(text)
        });
        error
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.resources }
    }
}

/// Limits all linear memories and tables of an instance together, and the size of each table.
pub(crate) struct InstanceMemory {
    limit: usize,
    /// In bytes.
    pub(crate) used: usize,
    /// Whether an allocation exceeded the limit. If the instance then fails, that is the reason.
    pub(crate) refused: bool,
    /// Whether the system refused memory within the limit.
    pub(crate) address_space_exhausted: bool,
}

impl InstanceMemory {
    /// Allocates this many bytes, if they fit.
    fn takes(&mut self, more: usize) -> bool {
        let wanted = self.used.saturating_add(more);
        let fits = wanted <= self.limit;
        self.refused |= !fits;
        if fits {
            self.used = wanted;
        }
        fits
    }
}

impl ResourceLimiter for InstanceMemory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.takes(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // The system's refusal, unless the limit above was the reason.
        self.address_space_exhausted |= !self.refused;
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > MAX_TABLE {
            self.refused = true;
            return Ok(false);
        }
        Ok(self.takes(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT)))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_grow_failed(error)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        64
    }

    fn memories(&self) -> usize {
        16
    }
}

/// Only types: there are no functions.
impl types::Host for HostState {}

impl host::Host for HostState {
    fn log(&mut self, level: host::Level, message: String) {
        if !self.is_silent() {
            self.context.log_line(level, &message);
        }
    }

    fn config(&mut self) -> String {
        self.context.config.clone()
    }

    fn now(&mut self) -> u64 {
        self.context.clock.now_ms()
    }

    fn counter_add(&mut self, name: String, value: u64) {
        if !self.is_silent() && !self.context.metrics.custom_counter(&name, value) {
            self.context.log_metrics_limit(&name);
        }
    }

    fn gauge_set(&mut self, name: String, value: f64) {
        if !self.is_silent() && !self.context.metrics.custom_gauge(&name, value) {
            self.context.log_metrics_limit(&name);
        }
    }

    fn state_get(&mut self, key: String) -> Option<Vec<u8>> {
        match &self.shared {
            Some(shared) => shared.get(&key),
            None => self.context.state.get(&key),
        }
    }

    fn state_set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), String> {
        let ttl = ttl_ms.map(Duration::from_millis);
        let kept = match &self.shared {
            Some(shared) => shared.set(key, value, ttl).map_err(|why| why.to_string()),
            None => self.context.state.set(key, value, ttl).map_err(|why| why.to_string()),
        };
        kept.inspect_err(|_| self.context.metrics.hit(PluginLimit::State))
    }

    fn state_delete(&mut self, key: String) {
        match &self.shared {
            Some(shared) => shared.delete(key),
            None => self.context.state.delete(&key),
        }
    }
}

/// The beginning of the text, at most this many bytes, cut at a character boundary.
pub(crate) fn cut(text: &str, length: usize) -> &str {
    &text[..text.floor_char_boundary(length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_of_an_instance_share_the_limit() {
        let mut memory =
            InstanceMemory { limit: 100, used: 0, refused: false, address_space_exhausted: false };
        assert!(memory.memory_growing(0, 60, None).unwrap());
        assert!(memory.memory_growing(0, 40, None).unwrap(), "a second memory");
        assert!(!memory.refused);
        assert!(!memory.memory_growing(60, 61, None).unwrap());
        assert!(memory.refused);
    }

    #[test]
    fn tables_count_against_the_limit_of_memories() {
        let mut memory =
            InstanceMemory { limit: 64 << 20, used: 0, refused: false, address_space_exhausted: false };
        let taken = (0..60).filter(|_| memory.table_growing(0, MAX_TABLE, None).unwrap()).count();
        assert_eq!(taken, (64 << 20) / (MAX_TABLE * TABLE_ELEMENT));
        assert!(memory.refused && memory.used <= memory.limit);
        assert!(!memory.memory_growing(0, 8 << 20, None).unwrap(), "what tables have, memories have not");
        assert!(memory.memory_growing(0, 1 << 20, None).unwrap());
        let mut small =
            InstanceMemory { limit: 100, used: 0, refused: false, address_space_exhausted: false };
        assert!(small.table_growing(0, 10, None).unwrap() && small.table_growing(10, 12, None).unwrap());
        assert!(!small.table_growing(12, 13, None).unwrap());
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("房间", 4), "房");
        assert_eq!(cut("ab", 4), "ab");
    }
}
