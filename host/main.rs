//! The binary: allocator, arguments, one command, exit code.
//!
//! glibc's allocator has one heap per group of threads, and returns memory only from the end of a
//! heap. Messages and compilers move between threads, so each heap would stay at its peak size.
//! jemalloc returns all memory that has been free for a while.

use clap::Parser as _;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings: memory that has been free for a second is returned to the system (the
/// default is 10 s, and near `[delivery] memory_limit` records wait for it; with less, a backlog takes
/// the same pages from the system again and again). A background thread does it, so no message waits.
/// `_RJEM_MALLOC_CONF` in the environment overrides these settings.
///
/// librdkafka keeps glibc's allocator: with jemalloc a bare drain of a topic costs a quarter more.
#[cfg(feature = "jemalloc")]
#[allow(unsafe_code, reason = "jemalloc finds its settings by the name of this symbol; it only reads them")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 60] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> std::process::ExitCode {
    // This binary has the `compile-plugin` command.
    halley::wasm::use_child_processes();
    match halley::cli::Cli::try_parse() {
        Ok(cli) => cli.run(),
        Err(said) => halley::cli::print_clap_error(&said),
    }
}
