//! From a component's bytes to code that can run.
//!
//! A compiler's time and memory are not proportional to what it is given, and what it is given may
//! be hostile. So compilation is kept away from the process that carries messages:
//!
//! - `bounds` counts, before anything is compiled, what is known to grow.
//! - `child` compiles in a process of its own with limits on memory and time, which ends with this
//!   one; `worker` is that process. Library and unit tests, whose binary is another one, compile
//!   here.
//! - `marks` remembers what ran into the limits, so that no start tries the same again.
//!
//! `limits` says what compiling may take, and how it ends where there is no code. What was compiled
//! earlier is in `module_cache`.

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

pub(crate) use child::is_ending;
pub use child::{await_compilations, end_compilations, use_child_processes};
pub use limits::CompileLimits;
pub(crate) use limits::NotCompiled;
pub use worker::{Job, compile_plugin};

use crate::digest;
use crate::wasm::engine::{self, EngineConfig};
use crate::wasm::failure::causes;
use crate::wasm::module_cache::CodeStore;
use limits::invalid;
use marks::Marks;

/// One per runtime.
#[derive(Debug)]
pub(crate) struct Compiler {
    config: EngineConfig,
    limits: CompileLimits,
    marks: Marks,
    compilations: AtomicU64,
}

impl Compiler {
    /// For engines of this configuration. Marks are kept in the folder, where there is one.
    pub(crate) fn new(config: EngineConfig, limits: CompileLimits, folder: Option<PathBuf>) -> Self {
        Self { config, limits, marks: Marks::new(folder), compilations: AtomicU64::new(0) }
    }

    /// Whether what ran into a limit is remembered beyond this process.
    pub(crate) fn keeps_marks(&self) -> bool {
        self.marks.are_kept()
    }

    /// How often something was compiled.
    #[cfg(test)]
    pub(crate) fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }

    /// The code of a component, from an earlier start or from the compiler.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn load(
        &self,
        engine: &Engine,
        store: Option<&CodeStore>,
        plugin: &str,
        component: &[u8],
    ) -> Result<Component, NotCompiled> {
        let (key, fingerprint) = (digest::hash(component), engine::fingerprint(engine));
        if let Some(store) = store
            && let Some(code) = store.get(&key, &fingerprint)
        {
            match deserialize(engine, &code) {
                Ok(component) => return Ok(component),
                Err(why) => {
                    tracing::warn!(plugin, "compiled code is compiled again: {}", causes(&why));
                    store.remove(&key, &fingerprint);
                }
            }
        }
        let code = self.compile(engine, plugin, &key, &fingerprint, component)?;
        let loaded = deserialize(engine, &code).map_err(|e| {
            NotCompiled::Interrupted(format!("was compiled to what cannot be loaded: {}", causes(&e)))
        })?;
        if let Some(store) = store {
            store.put(&key, &fingerprint, &code);
        }
        Ok(loaded)
    }

    fn compile(
        &self,
        engine: &Engine,
        plugin: &str,
        key: &str,
        fingerprint: &str,
        component: &[u8],
    ) -> Result<Vec<u8>, NotCompiled> {
        self.compilations.fetch_add(1, Ordering::Relaxed);
        if !child::is_used() {
            return engine
                .precompile_component(component)
                .map_err(|e| NotCompiled::Invalid(invalid(&causes(&e), &self.config, component)));
        }
        let attempt = self.marks.begin(plugin, key, fingerprint, self.limits)?;
        let compiled = child::compile(&self.config, self.limits, component);
        match &compiled {
            Err(NotCompiled::Limited(why)) => attempt.limited(why),
            _ => attempt.forget(),
        }
        compiled
    }
}

/// Loads what the compiler made.
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes must be what `Engine::precompile_component` made, unmodified. They come from
    // this process, through a pipe from a child that runs this very program, or from the folder of
    // `module_cache`, which only this user can write to and whose files are checked against their digests.
    #[allow(unsafe_code, reason = "there is no other way to load code that another process compiled")]
    unsafe {
        Component::deserialize(engine, code)
    }
}
