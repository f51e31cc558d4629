//! A panic in a task that others depend on is a bug, and aborts the process.
//!
//! If a worker or a delivery task just disappeared, its partition would stall forever while the
//! process looks healthy. After an abort, the supervisor restarts the process, and records in
//! flight are delivered again.
//!
//! The abort depends on nothing that may have failed: logging it is best effort.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::telemetry;

/// How long the process waits for its last log lines.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs a future; a panic in it aborts the process.
pub async fn abort_on_panic<F: Future>(part: &'static str, future: F) -> F::Output {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(output) => output,
        Err(_) => abort(part),
    }
}

/// Runs a function; a panic in it aborts the process.
pub fn call_or_abort<T>(part: &'static str, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| abort(part))
}

/// Aborts the process: this part has panicked, and others would wait for it forever.
pub fn abort(part: &'static str) -> ! {
    let tell = || {
        tracing::error!(
            part,
            "a part of the gateway panicked, which is a bug; aborting the process, records in flight are delivered again"
        );
    };
    // The log may be what panicked.
    let _ = catch_unwind(tell);
    let _ = catch_unwind(|| telemetry::flush(LOG_FLUSH_TIMEOUT));
    std::process::abort()
}

/// The message of a panic.
pub fn text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

/// Installs a hook that logs panics. The standard library's own hook writes to standard error,
/// which blocks if nobody reads it.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|panic| telemetry::log_fatal(&described(panic))));
}

fn described(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let told = panic.payload_as_str().unwrap_or("no reason given");
    let mut text = format!("thread `{name}` panicked at {place}: {told}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text.push_str(&format!("\n{backtrace}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    /// Set for the child process that panics.
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
    fn a_panic_in_a_task_aborts_the_process() {
        if !is_child() {
            return assert_aborted(&child("a_panic_in_a_task_aborts_the_process"));
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let task = runtime.spawn(super::abort_on_panic("a test", async { panic!("on purpose") }));
        // Otherwise the panic would end only the task.
        drop(runtime.block_on(task));
    }

    /// A log that panics, as `eprintln!` does on a full disk.
    struct PanickingWriter;

    impl std::io::Write for PanickingWriter {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            panic!("the log is broken")
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panicking_log_does_not_prevent_the_abort() {
        if !is_child() {
            return assert_aborted(&child("a_panicking_log_does_not_prevent_the_abort"));
        }
        tracing_subscriber::fmt().with_writer(|| PanickingWriter).init();
        super::call_or_abort("a test", || panic!("on purpose"));
    }

    #[test]
    fn a_panic_on_a_thread_aborts_the_process() {
        if !is_child() {
            return assert_aborted(&child("a_panic_on_a_thread_aborts_the_process"));
        }
        let thread = std::thread::spawn(|| super::call_or_abort("a test", || panic!("on purpose")));
        drop(thread.join());
    }
}
