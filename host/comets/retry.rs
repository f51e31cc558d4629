//! What a failed attempt means: whether the comet answered at all, whether another attempt may
//! help, whom the answer concerns, and how long to wait before the next attempt.
//!
//! Pure. One rule comes first: *a status that the comet's handler gave is an answer*. It says
//! something about the call, never about the comet, and does not count against the breaker.
//! Broken connections, connections that do not come about, replies of something that is not
//! gRPC (a proxy before a comet that is gone) and missed deadlines are no answers.
//!
//! # What the statuses mean
//!
//! | code | `PushMsg` | `Broadcast`, `BroadcastRoom` |
//! |---|---|---|
//! | `Unknown`, goim | [not taken](Meaning::NotTaken) | [later](Meaning::Later) |
//! | `Unknown`, chatroom | later | later |
//! | `NotFound` | not taken | [refused](Meaning::Refused) |
//! | `Cancelled` `DeadlineExceeded` `ResourceExhausted` `Aborted` `Internal` `Unavailable` | later | later |
//! | `InvalidArgument` `AlreadyExists` `PermissionDenied` `FailedPrecondition` `OutOfRange` `DataLoss` `Unauthenticated` | refused, key by key | refused |
//! | `Unimplemented`; `OutOfRange` and `ResourceExhausted` when the call is too large | refused | refused |
//!
//! Sources: goim `internal/comet/grpc/server.go` and `errors/errors.go`: `PushMsg` goes through
//! its keys and returns the first error of `Channel.Push`, which is `ErrSignalFullMsgDropped`
//! (a plain error, so that grpc-go answers `Unknown`) when that client's queue is full; an
//! unknown key is skipped. Its other errors are about missing arguments, which no call of ours
//! lacks. gRPC's `doc/statuscodes.md`: servers answer `Unknown` when a handler throws, `Internal`
//! when a message cannot be decoded, `Unimplemented` for an unknown method. A message beyond the
//! receiver's limit is `OutOfRange` in tonic and `ResourceExhausted` elsewhere.

use std::time::Duration;

use tonic::Code;

use super::wire::{Dialect, Method};
use crate::backoff::Backoff;

/// How long a call waits for its next attempt.
pub(super) const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// What a comet's answer means for the messages and connections of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The handler cannot take it now. Another attempt may help.
    Later,
    /// One of the named connections did not take it, and will not for now: its queue is full,
    /// or it is gone. Other connections of the same call may have been passed over.
    NotTaken,
    /// Another attempt gets the same answer.
    Refused {
        /// Whether it may be about one of the call's connections rather than about the call.
        about_a_key: bool,
    },
}

impl Meaning {
    /// Whether a call for several connections is worth being divided after this answer.
    pub(super) fn divides(self) -> bool {
        !matches!(self, Self::Refused { about_a_key: false })
    }
}

/// What an answer other than OK means.
pub(super) fn meaning(code: Code, text: &str, dialect: Dialect, method: Method) -> Meaning {
    let names_keys = method == Method::PushMsg;
    match code {
        Code::Unknown if names_keys && dialect == Dialect::Goim => Meaning::NotTaken,
        Code::NotFound if names_keys => Meaning::NotTaken,
        Code::ResourceExhausted | Code::OutOfRange if is_too_large(text) => {
            Meaning::Refused { about_a_key: false }
        }
        // `Ok` is no failure; a comet that sends it as one has not said that anything is wrong.
        Code::Ok
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Meaning::Later,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::DataLoss
        | Code::Unauthenticated => Meaning::Refused { about_a_key: names_keys },
        // No server answers so for one key: it is gRPC's own answer to an unknown method.
        Code::Unimplemented => Meaning::Refused { about_a_key: false },
    }
}

/// The texts of grpc-go and C++ ("received message larger than max"), of Java ("gRPC message
/// exceeds maximum size") and of tonic ("decoded message length too large"). The same codes say
/// other things as well.
fn is_too_large(text: &str) -> bool {
    ["larger than max", "exceeds maximum size", "length too large"].iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECTS: [Dialect; 2] = [Dialect::Chatroom, Dialect::Goim];
    const METHODS: [Method; 3] = [Method::PushMsg, Method::Broadcast, Method::BroadcastRoom];

    /// The table above, once more by code: what `PushMsg` means in chatroom and in goim, and
    /// what the other two methods mean.
    #[test]
    fn every_code_has_its_meaning_in_both_dialects_and_all_methods() {
        use Meaning::{Later, NotTaken};
        let (call, key) = (Meaning::Refused { about_a_key: false }, Meaning::Refused { about_a_key: true });
        let table = [
            (Code::Ok, [Later, Later, Later]),
            (Code::Cancelled, [Later, Later, Later]),
            (Code::Unknown, [Later, NotTaken, Later]),
            (Code::InvalidArgument, [key, key, call]),
            (Code::DeadlineExceeded, [Later, Later, Later]),
            (Code::NotFound, [NotTaken, NotTaken, call]),
            (Code::AlreadyExists, [key, key, call]),
            (Code::PermissionDenied, [key, key, call]),
            (Code::ResourceExhausted, [Later, Later, Later]),
            (Code::FailedPrecondition, [key, key, call]),
            (Code::Aborted, [Later, Later, Later]),
            (Code::OutOfRange, [key, key, call]),
            (Code::Unimplemented, [call, call, call]),
            (Code::Internal, [Later, Later, Later]),
            (Code::Unavailable, [Later, Later, Later]),
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
                        meaning(code, "no", dialect, method),
                        expected,
                        "{code:?} {dialect:?} {method:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_message_that_is_too_large_stays_so() {
        let text = "grpc: received message larger than max (5000000 vs. 4194304)";
        for (dialect, method) in DIALECTS.into_iter().flat_map(|d| METHODS.map(|m| (d, m))) {
            let meaning = meaning(Code::ResourceExhausted, text, dialect, method);
            assert_eq!(meaning, Meaning::Refused { about_a_key: false });
            assert!(!meaning.divides(), "every part of it would be as large");
        }
    }
}
