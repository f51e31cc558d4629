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

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    /// Set for the child that is to panic.
    const CHILD: &str = "HALLEY_TEST_PANICS";

    /// Runs one test of this binary in a process of its own.
    fn child(test: &str) -> Output {
        let binary = std::env::current_exe().expect("this test has a binary");
        let mut command = Command::new(binary);
        command.args(["--exact", &format!("panics::tests::{test}"), "--nocapture"]).env(CHILD, "1");
        command.output().expect("the binary runs")
    }

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    fn assert_aborted(output: &Output) {
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(output.status.signal(), Some(6), "SIGABRT: {output:?}");
    }

    #[test]
    fn a_panic_in_a_task_that_others_wait_for_ends_the_process() {
        if !is_child() {
            return assert_aborted(&child("a_panic_in_a_task_that_others_wait_for_ends_the_process"));
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let task = runtime.spawn(super::fatal("a test", async { panic!("on purpose") }));
        // Unsupervised, the panic would stop at the task.
        drop(runtime.block_on(task));
    }

    #[test]
    fn a_panic_on_a_thread_of_ours_ends_the_process() {
        if !is_child() {
            return assert_aborted(&child("a_panic_on_a_thread_of_ours_ends_the_process"));
        }
        let thread = std::thread::spawn(|| super::fatal_call("a test", || panic!("on purpose")));
        drop(thread.join());
    }
}
