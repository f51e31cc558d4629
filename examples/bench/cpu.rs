//! The CPU time of a process, all of its threads together, to the nanosecond.
//!
//! `/proc/PID/stat` counts in ticks of 10 ms, which is too coarse for short arms.

#![allow(unsafe_code, reason = "libc's clocks of other processes have no safe wrapper in our dependencies")]

use std::time::Duration;

use anyhow::Context as _;

/// User and system time of the process so far.
///
/// # Errors
/// When there is no such process.
pub(crate) fn time_of(pid: u32) -> anyhow::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).context("not a process id")?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is valid for the whole call.
    let result = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    anyhow::ensure!(result == 0, "process {pid} has ended");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the whole call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    anyhow::ensure!(result == 0, "process {pid} has ended");
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// The memory that a process has now, in bytes.
///
/// # Errors
/// When there is no such process.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS is missing")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
