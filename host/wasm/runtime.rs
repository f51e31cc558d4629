//! What all plugins of a gateway share: wasmtime's engine, its clock, the linker with everything
//! that they may import, their state and their metrics.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use crate::wasm::attempts::Attempts;
use crate::wasm::bindings::halley::policy::{host, types};
use crate::wasm::clock::Clock;
use crate::wasm::compile::{CompileLimits, Compiler, NotCompiled};
use crate::wasm::engine::{EngineConfig, WasmFeature};
use crate::wasm::epoch::Ticker;
use crate::wasm::host::HostState;
use crate::wasm::metrics::Metrics;
use crate::wasm::module::Module;
use crate::wasm::module_cache::CodeStore;
use crate::wasm::state::States;

/// The instance of WASI that makes a guest wait, in the version that `wasmtime-wasi` links.
const WASI_POLL: &str = "wasi:io/poll@0.2.12";
/// The functions of it that wait.
const WAITING: [&str; 2] = ["poll", "[method]pollable.block"];
/// What a guest gets for calling them.
pub(crate) const CANNOT_WAIT: &str = "plugins cannot wait (wasi:io/poll): decide from the data of the call";

/// What a runtime is made with.
#[derive(Debug, Default)]
pub struct RuntimeConfig {
    /// Where compiled code is kept, so that a restart need not compile. Made where there is none.
    /// Where it cannot be used, or others may write to it, a WARN says so, and nothing is kept.
    pub compiled: Option<PathBuf>,
    /// Where it is remembered which plugins cannot be compiled within the limits.
    pub uncompilable: Option<PathBuf>,
    /// What compiling one plugin may take.
    pub compile: CompileLimits,
    /// Features of WebAssembly that are on beside those that all languages need.
    pub features: Vec<WasmFeature>,
    /// What plugins take for the time.
    pub clock: Clock,
}

/// One per gateway. Holds the thread behind the plugins' deadlines, which ends with it.
pub struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<HostState>,
    pub(crate) metrics: Metrics,
    pub(crate) states: States,
    pub(crate) clock: Clock,
    /// What compiling came to lately.
    pub(crate) attempts: Attempts,
    /// Compiled code of earlier starts.
    pub(crate) code: Option<CodeStore>,
    pub(crate) compiler: Compiler,
    _ticker: Ticker,
}

impl Runtime {
    /// Starts the engine and its clock; metrics go into the registry.
    ///
    /// # Errors
    /// When this machine cannot run WebAssembly, or gives no thread.
    pub fn new(registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        Self::with(registry, RuntimeConfig::default())
    }

    /// With all that a gateway may want.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with(registry: &mut Registry, config: RuntimeConfig) -> anyhow::Result<Arc<Self>> {
        let RuntimeConfig { compiled, uncompilable, compile, features, clock } = config;
        let code = compiled.and_then(|folder| match CodeStore::open(&folder) {
            Ok(code) => Some(code),
            Err(why) => {
                tracing::warn!("compiled code is not kept, so that starts take longer: {why}");
                None
            }
        });
        let config = EngineConfig::of_this_process(&features);
        let engine = config.engine().map_err(anyhow::Error::msg);
        let engine = engine.context("wasmtime does not start here")?;
        let linker = linker(&engine).map_err(anyhow::Error::msg)?;
        let ticker = Ticker::start(&engine).context("no thread for the plugins' deadlines")?;
        let metrics = Metrics::register(registry);
        Ok(Arc::new(Self {
            engine,
            linker,
            metrics,
            states: States::default(),
            clock,
            attempts: Attempts::default(),
            code,
            compiler: Compiler::new(config, compile, uncompilable),
            _ticker: ticker,
        }))
    }

    /// The code of a component: what an earlier start compiled, or compiled now.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn load(&self, plugin: &str, component: &[u8]) -> Result<Component, NotCompiled> {
        self.compiler.load(&self.engine, self.code.as_ref(), plugin, component)
    }

    /// Compiles a version of this plugin, unless it is known what comes of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn compile(&self, plugin: &str, bytes: &[u8]) -> Result<Arc<Module>, String> {
        let compile = || self.compile_now(plugin, bytes);
        self.attempts.compile(plugin, bytes, self.compiler.keeps_marks(), compile)
    }

    /// Compiles a plugin, and checks that it fits, whatever is known of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn compile_now(&self, plugin: &str, bytes: &[u8]) -> Result<Module, NotCompiled> {
        Module::compile(&self.linker, bytes, |component| self.load(plugin, component))
    }

    /// How often something was compiled.
    #[cfg(test)]
    pub(crate) fn compilations(&self) -> u64 {
        self.compiler.compilations()
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
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

/// Deadlines count guest code only, so a guest that waits inside of the host would hold its
/// worker for as long as it likes. Whatever waits in WASI, waits through these two.
fn forbid_waiting(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut poll = linker.instance(WASI_POLL)?;
    for name in WAITING {
        poll.func_new(name, |_, _, _, _| Err(wasmtime::Error::msg(CANNOT_WAIT)))?;
    }
    linker.allow_shadowing(false);
    Ok(())
}
