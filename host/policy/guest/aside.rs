//! Running guest code away from async tasks.

/// Runs guest code where it may take its time: other tasks move to other threads, and
/// wasmtime-wasi may block. A single-threaded runtime (tests) has no other thread; there,
/// one is made.
pub(in crate::policy) fn outside_async<R: Send>(work: impl FnOnce() -> R + Send) -> R {
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
