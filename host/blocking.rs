//! Runs blocking work outside of async tasks.

/// The work did not end: it panicked, or the runtime has ended.
#[derive(Debug, thiserror::Error)]
#[error("{what} ended early: {why}")]
pub(crate) struct EndedEarly {
    what: &'static str,
    why: tokio::task::JoinError,
}

/// Runs blocking work on a thread for blocking work, and waits for it. Work that has started continues
/// if the future is dropped.
///
/// # Errors
/// When the work does not end. `what` names it in the error.
pub(crate) async fn run_blocking<R: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, EndedEarly> {
    tokio::task::spawn_blocking(work).await.map_err(|why| EndedEarly { what, why })
}

/// Runs blocking work on the current thread, while other tasks move to other threads; for work that
/// borrows. A single-threaded runtime (in tests) has no other threads; there, the work gets its own.
pub(crate) fn run_in_place<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Err(_) => work(),
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) => std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }),
    }
}
