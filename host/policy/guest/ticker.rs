//! The clock behind the plugins' deadlines: a thread that advances the engine's epoch.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// The step of plugins' deadlines.
pub(in crate::policy) const TICK: Duration = Duration::from_millis(5);

/// The thread. It ends when this is dropped, which waits for it; it holds the engine weakly
/// and so keeps nothing alive.
#[derive(Debug)]
pub(in crate::policy) struct Ticker {
    /// Dropping the sender is the signal to end.
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(in crate::policy) fn start(engine: &Engine) -> std::io::Result<Self> {
        let engine = engine.weak();
        let (alive, ended) = mpsc::channel::<()>();
        let tick = move || {
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        };
        let thread = std::thread::Builder::new().name("halley-epochs".into()).spawn(tick)?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // The thread cannot panic; and if it did, there would be nothing left to do.
            let _ = thread.join();
        }
    }
}

/// A deadline in ticks: rounded up, and one more because the current tick has begun.
pub(in crate::policy) fn ticks(deadline: Duration) -> u64 {
    let whole = deadline.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(whole).unwrap_or(u64::MAX - 1).saturating_add(1).min(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_rounded_up() {
        assert_eq!(ticks(Duration::from_millis(1)), 2);
        assert_eq!(ticks(Duration::from_millis(50)), 11);
        assert_eq!(ticks(Duration::from_millis(51)), 12);
        assert_eq!(ticks(Duration::MAX), u64::from(u32::MAX));
    }

    #[test]
    fn dropping_the_ticker_ends_its_thread() {
        let engine = Engine::default();
        drop(Ticker::start(&engine).unwrap());
    }
}
