//! How many files and sockets the process may have open.
//!
//! Shells and service managers start programs with a soft limit of 1,024 for the sake of those
//! that use `select(2)`, which this one does not. Every comet is a socket; so is every broker.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Fewer make a gateway of some comets fail soon.
const FEW: u64 = 1024;

/// Raises the soft limit to the hard one.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match raised {
        Ok(()) => info!(limit, was = current.unwrap_or(u64::MAX), "open files"),
        Err(error) => warn!(limit, %error, "cannot raise the limit on open files"),
    }
    if limit < FEW {
        warn!(
            limit,
            "few files may be open at a time: each comet, broker and admin client needs one; raise the hard limit (`ulimit -Hn`, `LimitNOFILE=`)"
        );
    }
}
