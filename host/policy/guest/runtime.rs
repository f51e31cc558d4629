//! What all policies of a gateway share: wasmtime's engine, its clock, the linker with
//! everything that plugins may import, their state and their metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::Context as _;
use bytesize::ByteSize;
use prometheus_client::registry::Registry;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine};

use crate::policy::guest::address_space;
use crate::policy::guest::attempts::Attempts;
use crate::policy::guest::bindings::halley::policy::{host, types};
use crate::policy::guest::clock::Clock;
use crate::policy::guest::code::CodeCache;
use crate::policy::guest::host::HostState;
use crate::policy::guest::state::States;
use crate::policy::guest::ticker::Ticker;
use crate::policy::intake::Intake;
use crate::policy::metrics::Metrics;
use crate::policy::versions::Alarms;

/// The instance of WASI that makes a guest wait, in the version that `wasmtime-wasi` links.
const WASI_POLL: &str = "wasi:io/poll@0.2.12";
/// The functions of it that wait.
const WAITING: [&str; 2] = ["poll", "[method]pollable.block"];
/// What a guest gets for calling them.
pub(in crate::policy) const CANNOT_WAIT: &str =
    "plugins cannot wait (wasi:io/poll): decide from the data of the call";

/// What a runtime is made with.
#[derive(Debug, Default)]
pub struct RuntimeConfig {
    /// Where plugins come from and which are trusted.
    pub intake: Intake,
    /// Where compiled code is kept, so that a restart need not compile. Made where there is none.
    /// Where it cannot be used, or others may write to it, a WARN says so, and nothing is kept.
    pub compiled: Option<PathBuf>,
    /// What plugins take for the time.
    pub clock: Clock,
}

/// One per gateway. Holds the thread behind the plugins' deadlines, which ends with it.
pub struct Runtime {
    pub(in crate::policy) engine: Engine,
    pub(in crate::policy) linker: Linker<HostState>,
    pub(in crate::policy) metrics: Metrics,
    pub(in crate::policy) states: States,
    /// Versions that failed too often.
    pub(in crate::policy) alarms: Alarms,
    /// Where plugins come from and which are trusted.
    pub(in crate::policy) intake: Intake,
    pub(in crate::policy) clock: Clock,
    /// How many chains there are now, each with instances of its own.
    pub(in crate::policy) chains: Arc<AtomicUsize>,
    /// What compiling came to lately.
    pub(in crate::policy) attempts: Attempts,
    /// Compiled code of earlier starts.
    pub(in crate::policy) code: Option<CodeCache>,
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

    /// The same where not every plugin is trusted, or some come from registries: for commands
    /// beside a gateway, which leave its compiled code alone.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with_intake(registry: &mut Registry, intake: Intake) -> anyhow::Result<Arc<Self>> {
        Self::with(registry, RuntimeConfig { intake, ..RuntimeConfig::default() })
    }

    /// With all that a gateway may want.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with(registry: &mut Registry, config: RuntimeConfig) -> anyhow::Result<Arc<Self>> {
        let RuntimeConfig { intake, compiled, clock } = config;
        let code = compiled.and_then(|folder| match CodeCache::open(&folder) {
            Ok(code) => Some(code),
            Err(why) => {
                tracing::warn!("compiled code is not kept, so that starts take longer: {why}");
                None
            }
        });
        let engine = engine(code.as_ref()).map_err(anyhow::Error::msg);
        let engine = engine.context("wasmtime does not start here")?;
        let linker = linker(&engine).map_err(anyhow::Error::msg)?;
        let ticker = Ticker::start(&engine).context("no thread for the plugins' deadlines")?;
        let metrics = Metrics::register(registry);
        Ok(Arc::new(Self {
            engine,
            linker,
            metrics,
            states: States::default(),
            alarms: Alarms::default(),
            intake,
            clock,
            chains: Arc::default(),
            attempts: Attempts::default(),
            code,
            _ticker: ticker,
        }))
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

fn engine(code: Option<&CodeCache>) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.cache(code.map(CodeCache::cache));
    config.wasm_component_model(true).epoch_interruption(true);
    // A swap under load compiles on one core and leaves the others to the messages.
    config.parallel_compilation(false);
    let limit = address_space::limit();
    if address_space::is_tight(limit) {
        tracing::info!(
            limit = %ByteSize::b(limit.unwrap_or_default()),
            "the process's address space is limited: plugins' memories take what they use and check their bounds"
        );
        address_space::make_tight(&mut config);
    }
    Engine::new(&config)
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
