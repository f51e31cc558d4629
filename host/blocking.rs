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
