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
//! What was compiled earlier is in `code`.

pub(in crate::policy) mod bounds;
mod child;
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::policy) mod fuzzing;
mod marks;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use wasmtime::Engine;
use wasmtime::component::Component;

pub(in crate::policy) use child::is_ending;
pub use child::{await_compilations, end_compilations, use_child_processes};
pub use worker::{Job, compile_plugin};

use crate::policy::guest::code::CodeStore;
use crate::policy::guest::engine::{self, EngineConfig};
use crate::policy::guest::module::{causes, hash};
use marks::Marks;

/// What compiling one plugin may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// The memory of the process that compiles.
    pub memory: ByteSize,
    /// Its time of the processor. By the clock it may take four times that.
    pub timeout: Duration,
}

impl Default for CompileLimits {
    /// Three times the memory and ten times the time of the largest components of the languages with
    /// a guide: those of Python (18 MB) and JavaScript (12 MB) take 350 MB and 25 s.
    fn default() -> Self {
        Self { memory: ByteSize::gib(1), timeout: Duration::from_secs(300) }
    }
}

/// Why there is no code: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) enum NotCompiled {
    /// It is not valid, or needs what is off.
    Invalid(String),
    /// It ran into a limit, or ended the compiler. Marked where there is a folder for that.
    Limited(String),
    /// Not the plugin's doing: another attempt may come further.
    Interrupted(String),
}

impl NotCompiled {
    /// The reason.
    pub(in crate::policy) fn into_reason(self) -> String {
        match self {
            Self::Invalid(why) | Self::Limited(why) | Self::Interrupted(why) => why,
        }
    }
}

/// One per runtime.
#[derive(Debug)]
pub(in crate::policy) struct Compiler {
    config: EngineConfig,
    limits: CompileLimits,
    marks: Marks,
    compilations: AtomicU64,
}

impl Compiler {
    /// For engines of this configuration. Marks are kept in the folder, where there is one.
    pub(in crate::policy) fn new(
        config: EngineConfig,
        limits: CompileLimits,
        folder: Option<PathBuf>,
    ) -> Self {
        Self { config, limits, marks: Marks::new(folder), compilations: AtomicU64::new(0) }
    }

    /// Whether what ran into a limit is remembered beyond this process.
    pub(in crate::policy) fn keeps_marks(&self) -> bool {
        self.marks.are_kept()
    }

    /// How often something was compiled.
    #[cfg(test)]
    pub(in crate::policy) fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }

    /// The code of a component, from an earlier start or from the compiler.
    ///
    /// # Errors
    /// Why there is none.
    pub(in crate::policy) fn load(
        &self,
        engine: &Engine,
        store: Option<&CodeStore>,
        plugin: &str,
        component: &[u8],
    ) -> Result<Component, NotCompiled> {
        let (key, fingerprint) = (hash(component), engine::fingerprint(engine));
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

/// What the compiler says, with what mends it.
fn invalid(why: &str, config: &EngineConfig, component: &[u8]) -> String {
    let missing: Vec<_> =
        config.missing(component).iter().map(|feature| format!("`{}`", feature.as_str())).collect();
    let remedy = if missing.is_empty() {
        "is the file complete?".to_owned()
    } else {
        let missing = missing.join(", ");
        format!(
            "it needs features that are off: add {missing} to [policies.wasm] features, or build it without"
        )
    };
    format!("does not compile: {why}; {remedy}")
}

/// Loads what the compiler made.
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes must be what `Engine::precompile_component` made, unmodified. They come from
    // this process, through a pipe from a child that runs this very program, or from the folder of
    // `code`, which only this user can write to and whose files are checked against their digests.
    #[allow(unsafe_code, reason = "there is no other way to load code that another process compiled")]
    unsafe {
        Component::deserialize(engine, code)
    }
}
