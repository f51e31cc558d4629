//! The gateway's side of the process that compiles.

use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::wasm::compile::limits::{CompileError, CompileLimits, WALL_CLOCK_FACTOR, invalid};
use crate::wasm::compile::worker;
use crate::wasm::engine::EngineConfig;
use crate::wasm::module_cache::MAX_CODE;

/// The subcommand of this binary that compiles.
pub(super) const COMMAND: &str = "compile-plugin";
/// This very program, even if the file at its path has been replaced.
const PROGRAM: &str = "/proc/self/exe";
/// How much of the compiler's standard error is read, in bytes.
const MAX_STDERR: u64 = 4096;
/// How often to check whether a compilation is still needed.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// Whether this process's binary has the subcommand.
static USE_CHILD_PROCESS: AtomicBool = AtomicBool::new(false);
/// Whether the gateway is stopping.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// The number of running compilations.
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Compiles plugins in separate processes from now on. For the `halley` binary only: the running
/// program is started again with `compile-plugin`.
pub fn use_child_processes() {
    USE_CHILD_PROCESS.store(true, Ordering::Relaxed);
}

/// Whether plugins are compiled in separate processes.
pub(super) fn uses_child_process() -> bool {
    USE_CHILD_PROCESS.load(Ordering::Relaxed)
}

/// Stops running compilations and starts no more, because the gateway is stopping. Does not wait.
pub fn end_compilations() {
    STOPPING.store(true, Ordering::SeqCst);
}

/// Whether compilations are being stopped.
pub(crate) fn is_stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// Waits until no compilation is running, or until the timeout.
pub fn await_compilations(most: Duration) {
    let (running, ended) = &RUNNING;
    ended.wait_while_for(&mut running.lock(), |running| *running > 0, most);
}

/// A running compilation; counted until it is dropped.
struct RunningCompilation(());

impl RunningCompilation {
    fn begin() -> Self {
        *RUNNING.0.lock() += 1;
        Self(())
    }
}

impl Drop for RunningCompilation {
    fn drop(&mut self) {
        *RUNNING.0.lock() -= 1;
        RUNNING.1.notify_all();
    }
}

/// Compiles a component in a separate process and waits for it. Do not call this on a thread that
/// carries messages.
///
/// # Errors
/// Why there is no code.
pub(super) fn compile(
    config: &EngineConfig,
    limits: CompileLimits,
    component: &[u8],
) -> Result<Vec<u8>, CompileError> {
    let _running = RunningCompilation::begin();
    let mut child = spawn(config, limits, component.len()).map_err(|e| {
        CompileError::Interrupted(format!("was not compiled: cannot start the compiler process: {e}"))
    })?;
    let outcome = std::thread::scope(|scope| {
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        scope.spawn(move || {
            // A child that exits early reports the reason by its exit code.
            input.map(|mut input| input.write_all(component))
        });
        let output = reader(scope, output, MAX_CODE.min(limits.memory.as_u64()));
        let errors = reader(scope, errors, MAX_STDERR);
        let ended = wait(&mut child, &output, limits.timeout.saturating_mul(WALL_CLOCK_FACTOR));
        // Ends the reader threads, even if a child closed its output and kept running.
        let _ = child.kill();
        let status = child.wait();
        CompileOutcome { ended, status, words: errors.recv().unwrap_or_default() }
    });
    outcome.result(limits, |why| invalid(why, config, component))
}

fn spawn(config: &EngineConfig, limits: CompileLimits, size: usize) -> std::io::Result<Child> {
    let mut command = Command::new(PROGRAM);
    command.arg0("halley").arg(COMMAND).env_clear().process_group(0);
    // The child needs nothing else from the environment.
    command.envs(std::env::var_os("LD_LIBRARY_PATH").map(|path| ("LD_LIBRARY_PATH", path)));
    command.arg("--size").arg(size.to_string());
    command.arg("--memory").arg(limits.memory.as_u64().to_string());
    command.arg("--seconds").arg(limits.timeout.as_secs().max(1).to_string());
    command.arg("--parent").arg(std::process::id().to_string());
    for feature in &config.features {
        command.arg("--feature").arg(feature.as_str());
    }
    if config.has_limited_address_space {
        command.arg("--tight");
    }
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Reads a pipe to its end, or to one byte more than its limit.
fn reader<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    pipe: Option<impl Read + Send + 'scope>,
    most: u64,
) -> Receiver<Vec<u8>> {
    let (read, result) = mpsc::channel();
    scope.spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is returned.
            let _ = pipe.take(most + 1).read_to_end(&mut bytes);
        }
        // The receiver may have stopped waiting.
        let _ = read.send(bytes);
    });
    result
}

enum ChildExit {
    /// It closed its output after writing this.
    Finished(Vec<u8>),
    /// It exceeded the time limit.
    TimedOut,
    /// The gateway is stopping.
    Cancelled,
}

fn wait(child: &mut Child, output: &Receiver<Vec<u8>>, timeout: Duration) -> ChildExit {
    let deadline = Instant::now() + timeout;
    loop {
        match output.recv_timeout(CHECK_EVERY) {
            Ok(bytes) => {
                // It is about to exit; if it does not, it counts as late.
                while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                    #[allow(
                        clippy::disallowed_methods,
                        reason = "waiting for a process, which has no other way"
                    )]
                    std::thread::sleep(Duration::from_millis(1));
                }
                return if matches!(child.try_wait(), Ok(None)) {
                    ChildExit::TimedOut
                } else {
                    ChildExit::Finished(bytes)
                };
            }
            Err(RecvTimeoutError::Disconnected) => return ChildExit::Finished(Vec::new()),
            Err(RecvTimeoutError::Timeout) if is_stopping() => return ChildExit::Cancelled,
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return ChildExit::TimedOut,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

struct CompileOutcome {
    ended: ChildExit,
    status: std::io::Result<ExitStatus>,
    /// Its standard error.
    words: Vec<u8>,
}

impl CompileOutcome {
    fn result(
        self,
        limits: CompileLimits,
        invalid: impl FnOnce(&str) -> String,
    ) -> Result<Vec<u8>, CompileError> {
        let timeout = || {
            let most = humantime::format_duration(limits.timeout);
            CompileError::Limited(format!("takes longer to compile than [policies] compile_timeout ({most})"))
        };
        let memory = || {
            let most = limits.memory;
            CompileError::Limited(format!(
                "takes more memory to compile than [policies] compile_memory ({most})"
            ))
        };
        let code = match self.ended {
            ChildExit::TimedOut => return Err(timeout()),
            ChildExit::Cancelled => {
                return Err(CompileError::Interrupted(
                    "was not compiled: the gateway is stopping".to_owned(),
                ));
            }
            ChildExit::Finished(code) => code,
        };
        if code.len() as u64 > MAX_CODE.min(limits.memory.as_u64()) {
            return Err(memory());
        }
        let status = self.status.map_err(|e| CompileError::Interrupted(format!("was not compiled: {e}")))?;
        let words = String::from_utf8_lossy(&self.words).replace(char::is_control, " ");
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(code),
            (Some(worker::INVALID), _) => Err(CompileError::Invalid(invalid(&words))),
            (Some(worker::NO_MEMORY), _) => Err(memory()),
            (_, Some(libc::SIGABRT)) if words.contains("memory allocation of") => Err(memory()),
            (_, Some(libc::SIGXCPU)) => Err(timeout()),
            (_, Some(signal @ (libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT))) => {
                Err(CompileError::Interrupted(format!(
                    "was not compiled: the compiler was ended by signal {signal}"
                )))
            }
            (_, Some(libc::SIGKILL)) => Err(CompileError::Limited(
                "was not compiled: the compiler was killed, probably by the kernel for lack of memory; \
                 see [policies] compile_memory"
                    .to_owned(),
            )),
            _ => Err(CompileError::Limited(format!("made the compiler end with {status}: {}", words.trim()))),
        }
    }
}
