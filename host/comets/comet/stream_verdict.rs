//! How the end of a stream counts: for the comet, its channel, and its stream. Pure.

use super::live_stream::{Leftovers, Over};
use crate::comets::CallTimeouts;
use crate::comets::grpc::CallFailure;
use crate::comets::metrics::StreamFailure;
use crate::comets::stream::open::StreamEnd;

/// How the end of a stream counts.
pub(super) struct Verdict {
    pub(super) failure: Option<StreamFailure>,
    pub(super) why: String,
    /// Whether the comet counts as unreachable, as after a call without an answer.
    pub(super) is_away: bool,
    pub(super) is_timeout: bool,
    /// Whether the channel stays, for calls.
    pub(super) keeps_channel: bool,
    /// Whether one of the messages that were out is at fault.
    pub(super) is_refusal: bool,
}

impl Verdict {
    pub(super) fn of(over: Over, is_ending: bool, leftovers: &Leftovers, timing: CallTimeouts) -> Self {
        let verdict = |failure, why: String| Self {
            failure,
            why,
            is_away: false,
            is_timeout: false,
            keeps_channel: false,
            is_refusal: false,
        };
        match over {
            Over::Drained => verdict(None, "the comet went away".to_owned()),
            Over::Stalled => {
                let why = format!("no credit for a message within {:?}", timing.delivery_timeout);
                verdict(Some(StreamFailure::Stalled), why)
            }
            Over::Overdue => {
                let why = format!("no acknowledgement within {:?}", timing.request_timeout);
                Self { is_timeout: true, ..verdict(Some(StreamFailure::Overdue), why) }
            }
            Over::Comet(StreamEnd::Violation(why)) => {
                Self { keeps_channel: true, ..verdict(Some(StreamFailure::Protocol), why) }
            }
            Over::Comet(StreamEnd::Lost(failure)) => {
                // An idle connection may end at any time.
                let is_away = leftovers.sent > 0;
                Self { is_away, ..verdict(is_away.then_some(StreamFailure::Lost), failure.text()) }
            }
            Over::Comet(StreamEnd::Status(status)) => Self::of_status(status, is_ending, leftovers),
        }
    }

    /// A handler that ends a stream goes away, or does not work.
    fn of_status(status: Result<(), CallFailure>, is_ending: bool, leftovers: &Leftovers) -> Self {
        let why = match &status {
            Ok(()) => "the comet ended the stream".to_owned(),
            Err(failure) => failure.text(),
        };
        let goes_away = match &status {
            Ok(()) => true,
            Err(CallFailure::Status { code, .. }) => {
                matches!(code, tonic::Code::Unavailable | tonic::Code::Cancelled)
            }
            Err(_) => false,
        };
        // As servers answer a message that is too large, or that they cannot read.
        let is_refusal = match &status {
            Err(CallFailure::Status { code, .. }) => {
                use tonic::Code::{InvalidArgument, OutOfRange, ResourceExhausted};
                leftovers.sent > 0 && matches!(code, InvalidArgument | OutOfRange | ResourceExhausted)
            }
            _ => false,
        };
        let is_fine = is_ending || (goes_away && (leftovers.has_progress || leftovers.sent == 0));
        Self {
            failure: (!is_fine).then_some(StreamFailure::Error),
            why,
            is_away: false,
            is_timeout: false,
            keeps_channel: !is_fine,
            is_refusal,
        }
    }
}
