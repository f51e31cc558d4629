//! Test support: a real Kafka, a real Redis, fake comets, and the gateway's own binary, each started
//! with one line and stopped with the test.
//!
//! Every wait has a condition and a deadline, and prints what a person needs to see when the deadline
//! passes. Nothing waits for time.

#![allow(dead_code, reason = "stories share these helpers; each uses a part of them")]

pub mod browser;
pub mod call;
pub mod certificates;
pub mod collector;
pub mod comet;
mod comet_service;
mod comet_stream;
pub mod discovery;

pub mod child_process;
pub mod gateway;
pub mod history;
pub mod hostile_redis;
pub mod http;
pub mod kafka;
pub mod mariadb;
pub mod peers;
pub mod prometheus;
pub mod proxy;
pub mod redis;
pub mod redis_cluster;
pub mod redis_nodes;
pub mod redis_sentinel;
pub mod registry;

pub use call::call;

use std::fmt::Debug;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Enough for a loaded machine with two cores; a passing test never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` returns a value.
///
/// # Panics
/// After the deadline, naming the condition.
pub async fn eventually<T>(
    what: impl std::fmt::Display,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let until = Instant::now() + deadline;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < until, "timed out after {deadline:?} waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `read` returns `wanted`.
///
/// # Panics
/// After [`PATIENCE`], with the last value.
pub async fn eventually_eq<T: PartialEq + Debug>(
    what: impl std::fmt::Display,
    wanted: T,
    mut read: impl AsyncFnMut() -> T,
) {
    let until = Instant::now() + PATIENCE;
    loop {
        let value = read().await;
        if value == wanted {
            return;
        }
        assert!(Instant::now() < until, "{what} should be {wanted:?} and is {value:?} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A name that is unique across tests and runs, such as `push-4711-3`.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // A broker may outlive the tests, so the process id alone may repeat.
    let salt: u32 = fastrand::u32(..);
    format!("{prefix}-{}-{salt:x}-{number}", std::process::id())
}

/// A TCP port of this machine that is currently free.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Prints without the test harness, which captures the output of passing tests.
pub fn print_uncaptured(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A new directory for one child process.
pub fn folder(prefix: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("halley-{prefix}-")).tempdir().expect("a temporary folder")
}

/// Writes a file that no other user may read.
pub fn secret(path: &std::path::Path, content: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, content).expect("the directory is writable");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
