//! How much address space an instance's memory reserves.
//!
//! wasmtime reserves 4 GiB for each linear memory, and guard regions around it, so that compiled code
//! needs no bounds checks. A reservation costs no memory, but it counts against a limit on the
//! process's address space (`ulimit -v`, `LimitAS=`): with 8 GiB, only one instance fits next to the
//! gateway itself. Under such a limit, memories reserve only what they use and move when they grow,
//! and compiled code checks bounds.

use std::path::Path;

use wasmtime::Config;

use crate::files;

/// Where Linux lists the limits of a process.
const LIMITS: &str = "/proc/self/limits";
/// The maximum size of that file, in bytes.
const LONGEST: u64 = 64 * 1024;
/// A limit of this size counts as unlimited: it has room for thousands of reservations.
const PLENTY: u64 = 16 << 40;
/// How much a memory may grow before it moves.
const GROWTH: u64 = 4 << 20;
/// The guard region behind each memory: accesses at smaller constant offsets need one bounds check
/// only.
const GUARD: u64 = 64 << 10;

/// The remedy for a process without room for another instance.
pub(crate) const REMEDY: &str = "raise the limit on the process's address space (`ulimit -v`, \
    systemd's `LimitAS=`) or on its mappings (vm.max_map_count), or give the gateway fewer partitions or plugins";

/// The limit on this process's address space in bytes; `None` if it is unlimited.
pub(crate) fn limit() -> Option<u64> {
    parse(&files::read_text(Path::new(LIMITS), LONGEST).ok()?)
}

fn parse(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether this limit requires small reservations.
pub(crate) fn has_limited_address_space(limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| limit < PLENTY)
}

/// Configures small reservations, for a process with a limit.
pub(crate) fn limit_memory_reservations(config: &mut Config) {
    config.memory_reservation(0).memory_reservation_for_growth(GROWTH);
    config.memory_guard_size(GUARD).guard_before_linear_memory(false);
}

/// Whether the system refused memory for an instance. wasmtime passes the system's error on as text
/// only.
pub(crate) fn is_refusal(error: &wasmtime::Error) -> bool {
    const ENOMEM: &str = "(os error 12)";
    error.is::<wasmtime::error::OutOfMemory>() || format!("{error:#}").contains(ENOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_as_linux_writes_it() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max locked memory         8388608              8388608              bytes     \n\
                 Max address space         {soft:<20} unlimited            bytes     \n"
            )
        };
        assert_eq!(parse(&limits("8589934592")), Some(8 << 30));
        assert_eq!(parse(&limits("unlimited")), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn huge_address_space_limits_are_ignored() {
        assert!(
            has_limited_address_space(Some(8 << 30))
                && !has_limited_address_space(Some(1 << 46))
                && !has_limited_address_space(None)
        );
    }
}
