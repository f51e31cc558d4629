//! Work that blocks, away from async tasks.

/// The work did not end: it panicked, or the runtime has ended.
#[derive(Debug, thiserror::Error)]
#[error("{what} ended early: {why}")]
pub(crate) struct EndedEarly {
    what: &'static str,
    why: tokio::task::JoinError,
}

/// Runs work that blocks on a thread for such work, and waits for it. Work that has begun goes on when
/// nobody waits any more.
///
/// # Errors
/// When the work does not end. `what` names it.
pub(crate) async fn run_blocking<R: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, EndedEarly> {
    tokio::task::spawn_blocking(work).await.map_err(|why| EndedEarly { what, why })
}

/// Runs work that blocks where it is, while other tasks move to other threads; for work that borrows. A
/// single-threaded runtime (tests) has no other thread; there, one is made.
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
