//! The binary: its allocator, arguments, one command, exit code.
//!
//! glibc's allocator has heaps for groups of threads, and gives back only what is free at the
//! end of one. Messages and compilers wander between threads, so that the process came to keep
//! for each heap the most that it ever held. jemalloc gives back whatever was free for a while.

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings: what was free for a fifth of a second goes back to the system (it would
/// be ten seconds: a swap's compiler leaves megabytes behind), and a thread sees to that, so that
/// no message waits for it. `_RJEM_MALLOC_CONF` in the environment goes over them.
#[allow(unsafe_code, reason = "jemalloc finds its settings by the name of this symbol; it only reads them")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 59] = b"background_thread:true,dirty_decay_ms:200,muzzy_decay_ms:0\0";

fn main() -> std::process::ExitCode {
    // This binary has `compile-plugin`.
    halley::wasm::use_child_processes();
    match halley::cli::Cli::try_parse() {
        Ok(cli) => cli.run(),
        Err(said) => halley::cli::say(&said),
    }
}
