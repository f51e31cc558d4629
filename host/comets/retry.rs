//! What to do after a failed attempt: which failures another attempt may mend, and how long
//! to wait before it.
//!
//! Pure.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

/// The first wait is up to this long; the bound doubles with every attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// No wait is longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Whether another attempt may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The comet may take the same call later.
    Transient,
    /// The comet answered, and will answer the same again.
    Permanent,
}

/// Which kind of failure a status is.
pub(super) fn kind(status: &Status) -> Kind {
    // A status with a source was made on this side, from a transport error. tonic maps those
    // to codes by kind (a connection that ends early is OutOfRange, for example), which says
    // nothing about the call.
    if status.source().is_some() {
        return Kind::Transient;
    }
    match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::DataLoss => Kind::Permanent,
        Code::ResourceExhausted if is_too_large(status.message()) => Kind::Permanent,
        _ => Kind::Transient,
    }
}

/// A message beyond the receiver's limit is OutOfRange in tonic, but ResourceExhausted in
/// other implementations, which also use that for what passes by. Their texts: grpc-go and
/// C++ "received message larger than max", Java "gRPC message exceeds maximum size".
fn is_too_large(text: &str) -> bool {
    text.contains("larger than max") || text.contains("exceeds maximum size")
}

/// How long to wait before the next attempt when `failed` (1 or more) have failed:
/// exponential, with full jitter. `dice` is from 0 to 1.
pub(super) fn wait(failed: u32, dice: f64) -> Duration {
    let bound = FIRST_WAIT.saturating_mul(1 << failed.saturating_sub(1).min(20)).min(LONGEST_WAIT);
    bound.mul_f64(dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        use Code::*;
        let permanent: Vec<_> = (0..=16)
            .map(Code::from)
            .filter(|code| kind(&Status::new(*code, "no")) == Kind::Permanent)
            .collect();
        let expected = [
            InvalidArgument,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            FailedPrecondition,
            OutOfRange,
            Unimplemented,
            DataLoss,
            Unauthenticated,
        ];
        assert_eq!(permanent, expected);
    }

    #[test]
    fn a_message_that_is_too_large_stays_so() {
        let status =
            Status::resource_exhausted("grpc: received message larger than max (5000000 vs. 4194304)");
        assert_eq!(kind(&status), Kind::Permanent);
        assert_eq!(kind(&Status::resource_exhausted("too busy")), Kind::Transient);
    }

    #[test]
    fn a_broken_connection_is_transient_whatever_its_code() {
        let error = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "early eof");
        let status = Status::from_error(Box::new(error));
        assert_eq!(kind(&status), Kind::Transient, "{status:?}");
    }

    proptest! {
        #[test]
        fn waits_grow_and_are_bounded(failed in 1u32.., dice in 0.0..=1.0f64) {
            prop_assert!(wait(failed, dice) <= wait(failed, 1.0));
            prop_assert!(wait(failed, 1.0) <= wait(failed.saturating_add(1), 1.0));
            prop_assert!(wait(failed, 1.0) <= LONGEST_WAIT);
        }
    }
}
