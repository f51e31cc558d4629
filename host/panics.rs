//! A panic in a part that others wait for is a bug, and ends the process.
//!
//! A worker or a journey that vanished would hold up its partition for ever while everything
//! looks healthy. Ended at once, the process is started anew by whoever watches it, and what
//! was in flight is delivered again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt as _;

/// Runs a future whose panic ends the process.
pub async fn fatal<F: Future>(part: &'static str, future: F) -> F::Output {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(output) => output,
        Err(_) => abort(part),
    }
}

/// Runs a function whose panic ends the process.
pub fn fatal_call<T>(part: &'static str, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| abort(part))
}

fn abort(part: &'static str) -> ! {
    tracing::error!(
        part,
        "a part of the gateway panicked, which is a bug; the process ends, and what was in flight will be delivered again"
    );
    std::process::abort()
}
