//! Compiles a component's bytes to native code.
//!
//! A compiler's time and memory are not proportional to its input, and the input may be hostile. So
//! compilation is isolated from the process that carries messages:
//!
//! - `bounds` counts, before compilation, everything that is known to cause disproportionate work.
//! - `child` compiles in a separate process with limits on memory and time, which exits with this
//!   one; `worker` is that process. Library and unit tests use another binary and compile in process.
//! - `marks` remembers what exceeded the limits, so that no start tries the same again.
//!
//! `limits` has the limits and the errors of compilation. `module_cache` caches what was compiled
//! earlier.

pub(crate) mod bounds;
mod child;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod limits;
mod marks;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::Engine;
use wasmtime::component::Component;

pub(crate) use child::is_stopping;
pub use child::{await_compilations, end_compilations, use_child_processes};
pub(crate) use limits::CompileError;
pub use limits::CompileLimits;
pub use worker::{CompileJob, compile_plugin};

use crate::digest::Digest;
use crate::wasm::engine::{self, EngineConfig};
use crate::wasm::failure::causes;
use crate::wasm::module_cache::ModuleCache;
use limits::invalid;
use marks::CompileMarks;

/// One per runtime.
#[derive(Debug)]
pub(crate) struct Compiler {
    config: EngineConfig,
    limits: CompileLimits,
    marks: CompileMarks,
    compilations: AtomicU64,
}

impl Compiler {
    /// For engines of this configuration. Marks are stored in the directory, if there is one.
    pub(crate) fn new(config: EngineConfig, limits: CompileLimits, folder: Option<PathBuf>) -> Self {
        Self { config, limits, marks: CompileMarks::new(folder), compilations: AtomicU64::new(0) }
    }

    /// Whether failures at a limit are remembered across restarts.
    pub(crate) fn keeps_marks(&self) -> bool {
        self.marks.are_kept()
    }

    /// How many compilations were started.
    #[cfg(test)]
    pub(crate) fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }

    /// The code of a component, from the cache or from the compiler.
    ///
    /// # Errors
    /// Why there is no code.
    pub(crate) fn load(
        &self,
        engine: &Engine,
        store: Option<&ModuleCache>,
        plugin: &str,
        component: &[u8],
    ) -> Result<Component, CompileError> {
        let (key, fingerprint) = (Digest::of(component), engine::fingerprint(engine));
        if let Some(store) = store
            && let Some(code) = store.get(key, &fingerprint)
        {
            match deserialize(engine, &code) {
                Ok(component) => return Ok(component),
                Err(why) => {
                    tracing::warn!(
                        plugin,
                        "cached code cannot be loaded; compiling it again: {}",
                        causes(&why)
                    );
                    store.remove(key, &fingerprint);
                }
            }
        }
        let code = self.compile(engine, plugin, key, &fingerprint, component)?;
        let loaded = deserialize(engine, &code).map_err(|e| {
            CompileError::Interrupted(format!("was compiled, but the code cannot be loaded: {}", causes(&e)))
        })?;
        if let Some(store) = store {
            store.put(key, &fingerprint, &code);
        }
        Ok(loaded)
    }

    fn compile(
        &self,
        engine: &Engine,
        plugin: &str,
        key: Digest,
        fingerprint: &str,
        component: &[u8],
    ) -> Result<Vec<u8>, CompileError> {
        self.compilations.fetch_add(1, Ordering::Relaxed);
        if !child::uses_child_process() {
            return engine
                .precompile_component(component)
                .map_err(|e| CompileError::Invalid(invalid(&causes(&e), &self.config, component)));
        }
        let attempt = self.marks.begin(plugin, &key.to_string(), fingerprint, self.limits)?;
        let compiled = child::compile(&self.config, self.limits, component);
        match &compiled {
            Err(CompileError::Limited(why)) => attempt.limited(why),
            _ => attempt.forget(),
        }
        compiled
    }
}

/// Loads compiled code.
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes must be what `Engine::precompile_component` made, unmodified. They come from
    // this process, through a pipe from a child that runs this very program, or from the folder of
    // `module_cache`, which only this user can write to and whose files are checked against their digests.
    #[allow(unsafe_code, reason = "there is no other way to load code that another process compiled")]
    unsafe {
        Component::deserialize(engine, code)
    }
}
