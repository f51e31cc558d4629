//! Classifies failed attempts: whether the comet answered, whether a retry may help, which part of
//! the call the answer concerns, and how long to back off.
//!
//! Pure. The first rule: *a status from the comet's handler is an answer*. It concerns the call,
//! never the comet, and does not count against the breaker. Broken connections, failed connection
//! attempts, replies that are not gRPC (from a proxy in front of a comet that is down) and missed
//! deadlines are not answers.
//!
//! # What the statuses mean
//!
//! | code | `PushMsg` | `Broadcast`, `BroadcastRoom` |
//! |---|---|---|
//! | `Unknown`, goim | [not taken](RetryDecision::NotTaken) | [later](RetryDecision::RetryLater) |
//! | `Unknown`, chatroom | later | later |
//! | `NotFound` | not taken | [refused](RetryDecision::Refused) |
//! | `Cancelled` `DeadlineExceeded` `ResourceExhausted` `Aborted` `Internal` `Unavailable` | later | later |
//! | `InvalidArgument` `AlreadyExists` `PermissionDenied` `FailedPrecondition` `OutOfRange` `DataLoss` `Unauthenticated` | refused, key by key | refused |
//! | `Unimplemented`; `OutOfRange` and `ResourceExhausted` when the call is too large | refused | refused |
//!
//! Sources: goim `internal/comet/grpc/server.go` and `errors/errors.go`: `PushMsg` iterates over
//! its keys and returns the first error of `Channel.Push`, which is `ErrSignalFullMsgDropped` (a
//! plain error, which grpc-go reports as `Unknown`) when that client's queue is full; an unknown
//! key is skipped. Its other errors are about missing arguments, which the gateway always sends.
//! gRPC's `doc/statuscodes.md`: servers answer `Unknown` when a handler throws, `Internal` when a
//! message cannot be decoded, `Unimplemented` for an unknown method. A message above the receiver's
//! limit is `OutOfRange` in tonic and `ResourceExhausted` elsewhere.

use std::time::Duration;

use tonic::Code;

use super::wire::{Dialect, Method};
use crate::backoff::Backoff;

/// How long a call waits for its next attempt.
pub(super) const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// How to proceed after a comet's answer other than OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// The handler cannot accept it now. A retry may help.
    RetryLater,
    /// One of the named connections did not accept it, and will not for now: its queue is full, or
    /// it is closed. Other connections of the same call may have been skipped.
    NotTaken,
    /// A retry gets the same answer.
    Refused {
        /// Whether it may concern one of the call's connections rather than the whole call.
        about_a_key: bool,
    },
}

impl RetryDecision {
    /// Whether splitting a call for several connections may help after this answer.
    pub(super) fn divides(self) -> bool {
        !matches!(self, Self::Refused { about_a_key: false })
    }
}

/// Classifies an answer other than OK.
pub(super) fn decision(code: Code, text: &str, dialect: Dialect, method: Method) -> RetryDecision {
    let names_keys = method == Method::PushMsg;
    match code {
        Code::Unknown if names_keys && dialect == Dialect::Goim => RetryDecision::NotTaken,
        Code::NotFound if names_keys => RetryDecision::NotTaken,
        Code::ResourceExhausted | Code::OutOfRange if is_too_large(text) => {
            RetryDecision::Refused { about_a_key: false }
        }
        // `Ok` is not a failure; it cannot occur here.
        Code::Ok
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => RetryDecision::RetryLater,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::DataLoss
        | Code::Unauthenticated => RetryDecision::Refused { about_a_key: names_keys },
        // Never about one key: it is gRPC's own answer to an unknown method.
        Code::Unimplemented => RetryDecision::Refused { about_a_key: false },
    }
}

/// The texts of grpc-go and C++ ("received message larger than max"), of Java ("gRPC message
/// exceeds maximum size") and of tonic ("decoded message length too large"). The codes alone are
/// ambiguous.
fn is_too_large(text: &str) -> bool {
    ["larger than max", "exceeds maximum size", "length too large"].iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECTS: [Dialect; 2] = [Dialect::Chatroom, Dialect::Goim];
    const METHODS: [Method; 3] = [Method::PushMsg, Method::Broadcast, Method::BroadcastRoom];

    /// The table above as data: the decision for `PushMsg` in chatroom and in goim, and for
    /// the other two methods.
    #[test]
    fn every_code_is_classified_for_all_methods() {
        use RetryDecision::{NotTaken, RetryLater};
        let (call, key) =
            (RetryDecision::Refused { about_a_key: false }, RetryDecision::Refused { about_a_key: true });
        let table = [
            (Code::Ok, [RetryLater, RetryLater, RetryLater]),
            (Code::Cancelled, [RetryLater, RetryLater, RetryLater]),
            (Code::Unknown, [RetryLater, NotTaken, RetryLater]),
            (Code::InvalidArgument, [key, key, call]),
            (Code::DeadlineExceeded, [RetryLater, RetryLater, RetryLater]),
            (Code::NotFound, [NotTaken, NotTaken, call]),
            (Code::AlreadyExists, [key, key, call]),
            (Code::PermissionDenied, [key, key, call]),
            (Code::ResourceExhausted, [RetryLater, RetryLater, RetryLater]),
            (Code::FailedPrecondition, [key, key, call]),
            (Code::Aborted, [RetryLater, RetryLater, RetryLater]),
            (Code::OutOfRange, [key, key, call]),
            (Code::Unimplemented, [call, call, call]),
            (Code::Internal, [RetryLater, RetryLater, RetryLater]),
            (Code::Unavailable, [RetryLater, RetryLater, RetryLater]),
            (Code::DataLoss, [key, key, call]),
            (Code::Unauthenticated, [key, key, call]),
        ];
        let codes: Vec<_> = table.iter().map(|(code, _)| *code as i32).collect();
        assert_eq!(codes, (0..=16).collect::<Vec<_>>(), "all of gRPC's codes");
        for (code, [chatroom, goim, other]) in table {
            for (dialect, push) in DIALECTS.into_iter().zip([chatroom, goim]) {
                for method in METHODS {
                    let expected = if method == Method::PushMsg { push } else { other };
                    assert_eq!(
                        decision(code, "no", dialect, method),
                        expected,
                        "{code:?} {dialect:?} {method:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_refused() {
        let text = "grpc: received message larger than max (5000000 vs. 4194304)";
        for (dialect, method) in DIALECTS.into_iter().flat_map(|d| METHODS.map(|m| (d, m))) {
            let decision = decision(Code::ResourceExhausted, text, dialect, method);
            assert_eq!(decision, RetryDecision::Refused { about_a_key: false });
            assert!(!decision.divides(), "every part of it would be as large");
        }
    }
}
