//! Compiles plugins, and caches the results for versions that are not active.
//!
//! A refused set is prepared again at every rescan. Its files are not compiled again: failures are
//! cached by hash with their reason, and compiled modules are cached until some set becomes active. A
//! component that contains a language runtime takes half a minute to compile, so slow compilations
//! are logged.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::digest::Digest;
use crate::wasm::compile::CompileError;
use crate::wasm::module::Module;

/// How many failures are cached.
const MAX_REFUSED: usize = 64;
/// How many compiled modules are cached.
const MAX_COMPILED: usize = 4;
/// Compilations that take longer than this are logged.
const SLOW: Duration = Duration::from_secs(2);

/// One per runtime.
#[derive(Default)]
pub(crate) struct CompileCache(Mutex<CompileResults>);

#[derive(Default)]
struct CompileResults {
    /// Hashes and reasons.
    refused: VecDeque<(Digest, CompileError)>,
    compiled: VecDeque<Arc<Module>>,
}

impl CompileCache {
    /// Compiles a version of this plugin, or returns the cached result. `keeps_marks`: failures at a
    /// limit are also remembered elsewhere.
    ///
    /// # Errors
    /// The problem: the second half of a sentence that begins with the plugin.
    pub(crate) fn compile(
        &self,
        plugin: &str,
        bytes: &[u8],
        keeps_marks: bool,
        compile: impl FnOnce() -> Result<Module, CompileError>,
    ) -> Result<Arc<Module>, CompileError> {
        let hash = Digest::of(bytes);
        if let Some(known) = self.known(hash) {
            return known;
        }
        let compile = || logging_when_slow(plugin, bytes.len(), compile);
        // The file is untrusted and goes through parsers here; a panic in one of them must not end
        // the process.
        let compiled = catch_unwind(AssertUnwindSafe(compile))
            .unwrap_or_else(|_| Err(CompileError::invalid("made the compiler panic; is the file complete?")));
        match compiled {
            Ok(module) => Ok(self.keep(Arc::new(module))),
            Err(why) => {
                // A component with a mark in the directory may be tried again once the mark is
                // removed there.
                let is_final = match why {
                    CompileError::Invalid(_) => true,
                    CompileError::Limited(_) => !keeps_marks,
                    CompileError::Interrupted(_) => false,
                };
                if is_final {
                    self.refuse(hash, why.clone());
                }
                Err(why)
            }
        }
    }

    /// A set is active now: modules that are not part of it may never be needed.
    pub(crate) fn forget_compiled(&self) {
        self.0.lock().compiled.clear();
    }

    fn known(&self, hash: Digest) -> Option<Result<Arc<Module>, CompileError>> {
        let known = self.0.lock();
        if let Some((_, why)) = known.refused.iter().find(|(refused, _)| *refused == hash) {
            return Some(Err(why.clone()));
        }
        known.compiled.iter().find(|module| module.hash == hash).cloned().map(Ok)
    }

    fn keep(&self, module: Arc<Module>) -> Arc<Module> {
        push(&mut self.0.lock().compiled, Arc::clone(&module), MAX_COMPILED);
        module
    }

    fn refuse(&self, hash: Digest, why: CompileError) {
        push(&mut self.0.lock().refused, (hash, why), MAX_REFUSED);
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Logs when this takes longer than [`SLOW`], and again when it is done.
fn logging_when_slow<R>(plugin: &str, bytes: usize, work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let (done, waiting) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        let log_if_slow = move || {
            if waiting.recv_timeout(SLOW) == Err(RecvTimeoutError::Timeout) {
                tracing::info!(
                    plugin,
                    bytes,
                    "compiling the plugin takes long; the active policies stay active meanwhile"
                );
            }
        };
        // If the thread cannot be started, nothing is logged.
        drop(std::thread::Builder::new().name("halley-compiling".into()).spawn_scoped(scope, log_if_slow));
        let result = work();
        drop(done);
        result
    });
    let took = begun.elapsed();
    if took > SLOW {
        tracing::info!(plugin, seconds = took.as_secs_f64(), "compiled the plugin");
    }
    result
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::wasm::{Runtime, idle_plugin};

    #[test]
    fn compile_results_are_cached_until_activation() {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        let bytes = idle_plugin().unwrap();
        let (one, again) = (runtime.compile("p", &bytes).unwrap(), runtime.compile("p", &bytes).unwrap());
        assert!(Arc::ptr_eq(&one, &again));
        runtime.compile_cache.forget_compiled();
        assert!(!Arc::ptr_eq(&one, &runtime.compile("p", &bytes).unwrap()));

        let why = runtime.compile("p", b"text").err().unwrap();
        assert_eq!(runtime.compile_cache.known(Digest::of(b"text")).unwrap().err(), Some(why));
        (0..MAX_REFUSED).for_each(|n| drop(runtime.compile("p", format!("{n}").as_bytes())));
        assert!(runtime.compile_cache.known(Digest::of(b"text")).is_none(), "no more than the limit");
        assert_eq!(runtime.compile_cache.0.lock().refused.len(), MAX_REFUSED);
    }

    #[test]
    fn logging_when_slow_returns_the_result() {
        assert_eq!(logging_when_slow("p", 1, || 7), 7);
    }
}
