//! What all plugins of a gateway share: wasmtime's engine, its epochs, the linker with everything
//! that they may import, their state and their metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use crate::decision::PluginVersion;
use crate::telemetry::LogThrottle;
use crate::wasm::bindings::halley::policy::{host, types};
use crate::wasm::clock::Clock;
use crate::wasm::compile::{CompileError, CompileLimits, Compiler};
use crate::wasm::compile_cache::CompileCache;
use crate::wasm::engine::{EngineConfig, WasmFeature};
use crate::wasm::epoch::EpochTicker;
use crate::wasm::host::{HostState, PluginContext};
use crate::wasm::metrics::Metrics;
use crate::wasm::module::Module;
use crate::wasm::module_cache::ModuleCache;
use crate::wasm::state::PluginStates;

/// The instance of WASI that makes a guest wait, in the version that `wasmtime-wasi` links.
const WASI_POLL: &str = "wasi:io/poll@0.2.12";
/// Its functions that wait.
const WAITING: [&str; 2] = ["poll", "[method]pollable.block"];
/// The error when a guest calls them.
pub(crate) const CANNOT_WAIT: &str = "plugins cannot wait (wasi:io/poll): decide from the data of the call";

/// The configuration of a runtime.
#[derive(Debug, Default)]
pub struct RuntimeConfig {
    /// Where compiled code is cached, so that a restart need not compile. Created if missing. If it
    /// cannot be used, or others may write to it, a warning is logged and nothing is cached.
    pub compiled: Option<PathBuf>,
    /// Where plugins that cannot be compiled within the limits are recorded.
    pub uncompilable: Option<PathBuf>,
    /// Limits on compiling one plugin.
    pub compile: CompileLimits,
    /// WebAssembly features that are enabled in addition to those that all languages need.
    pub features: Vec<WasmFeature>,
    /// The clock that plugins see.
    pub clock: Clock,
}

/// One per gateway. Owns the thread behind the plugins' deadlines.
#[derive(derive_more::Debug)]
#[debug("Runtime")]
pub struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<HostState>,
    pub(crate) metrics: Metrics,
    pub(crate) states: PluginStates,
    pub(crate) clock: Clock,
    /// Results of recent compilations.
    pub(crate) compile_cache: CompileCache,
    /// The cache of compiled code.
    pub(crate) module_cache: Option<ModuleCache>,
    pub(crate) compiler: Compiler,
    _ticker: EpochTicker,
}

impl Runtime {
    /// Starts the engine and its epoch thread, and registers the metrics.
    ///
    /// # Errors
    /// When this machine cannot run WebAssembly, or no thread can be started.
    pub fn new(registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        Self::with(registry, RuntimeConfig::default())
    }

    /// The same with a configuration.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with(registry: &mut Registry, config: RuntimeConfig) -> anyhow::Result<Arc<Self>> {
        let RuntimeConfig { compiled, uncompilable, compile, features, clock } = config;
        let code = compiled.and_then(|folder| match ModuleCache::open(&folder) {
            Ok(code) => Some(code),
            Err(why) => {
                tracing::warn!("compiled code is not cached, so starts take longer: {why:#}");
                None
            }
        });
        let config = EngineConfig::of_this_process(&features);
        let engine = config.engine().map_err(anyhow::Error::msg);
        let engine = engine.context("wasmtime does not start here")?;
        let linker = linker(&engine).map_err(anyhow::Error::msg)?;
        let ticker = EpochTicker::start(&engine).context("no thread for the plugins' deadlines")?;
        let metrics = Metrics::register(registry);
        Ok(Arc::new(Self {
            engine,
            linker,
            metrics,
            states: PluginStates::default(),
            clock,
            compile_cache: CompileCache::default(),
            module_cache: code,
            compiler: Compiler::new(config, compile, uncompilable),
            _ticker: ticker,
        }))
    }

    /// The code of a component, from the cache or compiled now.
    ///
    /// # Errors
    /// Why there is no code.
    pub(crate) fn load(&self, plugin: &str, component: &[u8]) -> Result<Component, CompileError> {
        self.compiler.load(&self.engine, self.module_cache.as_ref(), plugin, component)
    }

    /// Compiles a version of this plugin, or returns the cached result.
    ///
    /// # Errors
    /// The problem: the second half of a sentence that begins with the plugin.
    pub(crate) fn compile(&self, plugin: &str, bytes: &[u8]) -> Result<Arc<Module>, CompileError> {
        let compile = || self.compile_now(plugin, bytes);
        self.compile_cache.compile(plugin, bytes, self.compiler.keeps_marks(), compile)
    }

    /// Compiles a plugin and checks that it fits the contract, bypassing the cached results.
    ///
    /// # Errors
    /// The problem: the second half of a sentence that begins with the plugin.
    pub(crate) fn compile_now(&self, plugin: &str, bytes: &[u8]) -> Result<Module, CompileError> {
        Module::compile(&self.linker, bytes, |component| self.load(plugin, component))
    }

    /// What instances of a plugin have in common. `state` names the values that it keeps in this process.
    pub(crate) fn plugin_context(
        &self,
        version: PluginVersion,
        config: String,
        state: &str,
    ) -> PluginContext {
        PluginContext {
            metrics: self.metrics.plugin(&version),
            state: self.states.of(state),
            version,
            config,
            log: LogThrottle::new(100, Duration::from_secs(1)),
            failure_log: LogThrottle::new(1, Duration::from_secs(5)),
            over_budget: LogThrottle::new(1, Duration::from_secs(5)),
            logged_metrics_limit: AtomicBool::new(false),
            clock: self.clock.clone(),
            silent: false,
        }
    }

    /// How many compilations were started.
    #[cfg(test)]
    pub(crate) fn compilations(&self) -> u64 {
        self.compiler.compilations()
    }
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    types::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
    host::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    forbid_waiting(&mut linker)?;
    Ok(linker)
}

/// Deadlines count guest code only, so a guest that waits in the host would block its worker without
/// limit. All waiting in WASI goes through these two functions.
fn forbid_waiting(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut poll = linker.instance(WASI_POLL)?;
    for name in WAITING {
        poll.func_new(name, |_, _, _, _| Err(wasmtime::Error::msg(CANNOT_WAIT)))?;
    }
    linker.allow_shadowing(false);
    Ok(())
}
