//! Compiling, and what it came to for versions that did not come in force.
//!
//! A set that is refused is looked at again at every rescan. Its files are not compiled again:
//! what does not compile is remembered by its hash with the reason, and what compiled is kept for
//! the next attempt until some set comes in force. A component of a language with an engine of its
//! own compiles for half a minute, so the log says when one takes its time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::digest;
use crate::wasm::compile::NotCompiled;
use crate::wasm::module::Module;

/// How many files that do not compile are remembered.
const REFUSED: usize = 64;
/// How many compiled ones are kept.
const COMPILED: usize = 4;
/// A compilation that takes longer is logged.
const SLOW: Duration = Duration::from_secs(2);

/// One per runtime.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Hashes and reasons.
    refused: VecDeque<(String, String)>,
    compiled: VecDeque<Arc<Module>>,
}

impl Attempts {
    /// Compiles a version of this plugin, unless it is known what comes of it. `keeps_marks`: what ran
    /// into a limit is remembered elsewhere, too.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn compile(
        &self,
        plugin: &str,
        bytes: &[u8],
        keeps_marks: bool,
        compile: impl FnOnce() -> Result<Module, NotCompiled>,
    ) -> Result<Arc<Module>, String> {
        let hash = digest::hash(bytes);
        if let Some(known) = self.known(&hash) {
            return known;
        }
        let compile = || logging_when_slow(plugin, bytes.len(), compile);
        // A file from outside goes through parsers here; a bug of theirs must not end us.
        let compiled = catch_unwind(AssertUnwindSafe(compile)).unwrap_or_else(|_| {
            Err(NotCompiled::Invalid("made the compiler panic; is the file complete?".into()))
        });
        match compiled {
            Ok(module) => Ok(self.keep(Arc::new(module))),
            Err(why) => {
                // What is marked in a folder may be tried again once the mark is removed there.
                let is_final = match why {
                    NotCompiled::Invalid(_) => true,
                    NotCompiled::Limited(_) => !keeps_marks,
                    NotCompiled::Interrupted(_) => false,
                };
                let why = why.into_reason();
                if is_final {
                    self.refuse(hash, why.clone());
                }
                Err(why)
            }
        }
    }

    /// Some set is in force now: what did not come in force with it may never do.
    pub(crate) fn forget_compiled(&self) {
        self.0.lock().compiled.clear();
    }

    fn known(&self, hash: &str) -> Option<Result<Arc<Module>, String>> {
        let known = self.0.lock();
        if let Some((_, why)) = known.refused.iter().find(|(refused, _)| refused == hash) {
            return Some(Err(why.clone()));
        }
        known.compiled.iter().find(|module| module.hash == hash).cloned().map(Ok)
    }

    fn keep(&self, module: Arc<Module>) -> Arc<Module> {
        push(&mut self.0.lock().compiled, Arc::clone(&module), COMPILED);
        module
    }

    fn refuse(&self, hash: String, why: String) {
        push(&mut self.0.lock().refused, (hash, why), REFUSED);
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Logs a line when this takes longer than [`SLOW`], and one when it is done then.
fn logging_when_slow<R>(plugin: &str, bytes: usize, work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let (done, waiting) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        let teller = move || {
            if waiting.recv_timeout(SLOW) == Err(RecvTimeoutError::Timeout) {
                tracing::info!(
                    plugin,
                    bytes,
                    "compiling a plugin takes its time; what is active stays so meanwhile"
                );
            }
        };
        // Without the thread there is no line.
        drop(std::thread::Builder::new().name("halley-compiling".into()).spawn_scoped(scope, teller));
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
    fn what_was_compiled_or_refused_is_known_until_a_set_comes_in_force() {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        let bytes = idle_plugin().unwrap();
        let (one, again) = (runtime.compile("p", &bytes).unwrap(), runtime.compile("p", &bytes).unwrap());
        assert!(Arc::ptr_eq(&one, &again));
        runtime.attempts.forget_compiled();
        assert!(!Arc::ptr_eq(&one, &runtime.compile("p", &bytes).unwrap()));

        let why = runtime.compile("p", b"text").err().unwrap();
        assert_eq!(runtime.attempts.known(&digest::hash(b"text")).unwrap().err(), Some(why));
        (0..REFUSED).for_each(|n| drop(runtime.compile("p", format!("{n}").as_bytes())));
        assert!(runtime.attempts.known(&digest::hash(b"text")).is_none(), "no more than so many");
        assert_eq!(runtime.attempts.0.lock().refused.len(), REFUSED);
    }

    #[test]
    fn what_is_compiled_gives_its_result() {
        assert_eq!(logging_when_slow("p", 1, || 7), 7);
    }
}
