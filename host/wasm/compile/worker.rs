//! The process that compiles one component: bytes on standard input, code on standard output.
//!
//! Whatever the compiler does ends with this process. Its memory, its time and the size of its files
//! are limited; it starts no processes and opens no files; and it exits when the gateway does.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::wasm::compile::limits::WALL_CLOCK_FACTOR;
use crate::wasm::engine::{EngineConfig, WasmFeature};
use crate::wasm::failure::causes;

/// The component is not valid; standard error has the reason.
pub(super) const INVALID: i32 = 3;
/// The compiler ran out of memory and reported it.
pub(super) const NO_MEMORY: i32 = 4;
/// The gateway exited, or did not send the whole component.
const PARENT_GONE: i32 = 5;

/// Address space in addition to the memory limit: the program, its libraries, stacks, reservations.
const ADDRESS_SPACE_OVERHEAD: u64 = 4 << 30;
/// Its niceness: messages take precedence.
const NICENESS: i32 = 5;

/// The arguments of the process.
#[derive(Debug, Clone)]
pub struct CompileJob {
    /// Size of the component on standard input, in bytes.
    pub size: u64,
    /// The memory limit, in bytes.
    pub memory: u64,
    /// The limit on CPU time, in seconds.
    pub seconds: u64,
    /// The process id of the gateway.
    pub parent: i32,
    /// The names of the enabled features.
    pub features: Vec<String>,
    /// Whether the code is for a process with a limited address space.
    pub tight: bool,
}

/// Compiles the component on standard input. Returns the exit code.
pub fn compile_plugin(job: &CompileJob) -> u8 {
    match work(job) {
        Ok(()) => 0,
        Err((code, why)) => {
            // Fails if the gateway has exited.
            let _ = write!(std::io::stderr(), "{why}");
            u8::try_from(code).unwrap_or(u8::MAX)
        }
    }
}

type WorkerFailure = (i32, String);

fn work(job: &CompileJob) -> Result<(), WorkerFailure> {
    let parent_gone = |e: std::io::Error| (PARENT_GONE, e.to_string());
    confine(job).map_err(parent_gone)?;
    let mut component = Vec::new();
    std::io::stdin().take(job.size).read_to_end(&mut component).map_err(parent_gone)?;
    if component.len() as u64 != job.size {
        return Err((PARENT_GONE, "the component did not arrive".to_owned()));
    }
    let features = job.features.iter().filter_map(|name| WasmFeature::named(name)).collect();
    let engine = EngineConfig { features, has_limited_address_space: job.tight }.engine();
    let compiled = engine.and_then(|engine| engine.precompile_component(&component));
    let code = compiled.map_err(|e| {
        let no_memory = e.is::<wasmtime::error::OutOfMemory>() || format!("{e:#}").contains("os error 12");
        (if no_memory { NO_MEMORY } else { INVALID }, causes(&e))
    })?;
    let mut out = std::io::stdout();
    out.write_all(&code).and_then(|()| out.flush()).map_err(parent_gone)
}

/// Drops privileges and resources that this process does not need.
fn confine(job: &CompileJob) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The gateway may have exited before that call.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(job.parent) {
        return Err(std::io::Error::other("the gateway has ended"));
    }
    let _ = rustix::process::nice(NICENESS);
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Fsize, 0, 0)?;
    limit(Resource::Data, job.memory, job.memory)?;
    let addresses = job.memory.saturating_add(ADDRESS_SPACE_OVERHEAD);
    limit(Resource::As, addresses, addresses)?;
    // The signal of the soft limit identifies the cause; the hard limit kills in any case.
    limit(Resource::Cpu, job.seconds, job.seconds.saturating_add(2))?;
    end_after(Duration::from_secs(
        job.seconds.saturating_mul(u64::from(WALL_CLOCK_FACTOR)).saturating_add(10),
    ));
    Ok(())
}

/// Lowers a limit; a lower one stays.
fn limit(resource: Resource, soft: u64, hard: u64) -> std::io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let lower = |wanted: u64, now: Option<u64>| Some(now.map_or(wanted, |now| now.min(wanted)));
    let new = Rlimit { current: lower(soft, now.current), maximum: lower(hard, now.maximum) };
    Ok(rustix::process::setrlimit(resource, new)?)
}

/// Exits after this time, because a gateway that is suspended cannot end this process.
fn end_after(time: Duration) {
    let wait = move || {
        #[allow(clippy::disallowed_methods, reason = "a deadline waits for time")]
        std::thread::sleep(time);
        std::process::exit(PARENT_GONE);
    };
    // If the thread cannot be started, the gateway's own deadline remains.
    drop(std::thread::Builder::new().name("deadline".into()).spawn(wait));
}
