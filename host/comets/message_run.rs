//! The messages of one call: one, or several of a room that follow each other.
//!
//! A run is made once per room and batch and shared by the calls to all comets, so that a message costs
//! a comet's queue next to nothing. Its messages are settled one by one where their outcomes differ: a
//! call is then [split](MessageRun::split_first).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, BytesMut};
use http::HeaderValue;

use super::hold::OrderHold;
use super::outcome::{CallOutcome, Outcomes};
use super::wire::Payload;
use crate::message::{MESSAGE_ID, MessageId};

/// The maximum number of messages for one room that are merged into one call.
pub(super) const MAX_MERGED_MESSAGES: usize = 100;
pub(super) const MAX_MERGED_BYTES: usize = 64 * 1024;
/// The maximum size of their ids as metadata: gRPC's C++ servers refuse more than 8 KiB by default.
const MAX_MERGED_METADATA: usize = 7 * 1024;
/// The maximum number of messages in a run. Runs are merged as a whole: shorter ones fill calls better.
const MAX_RUN: usize = 32;

/// A message for comets.
#[derive(Debug)]
pub struct CallMessage {
    /// Encoded once by [`Fleet::payload`](super::Fleet::payload) for all calls.
    pub payload: Payload,
    /// Its id, sent in the call's metadata.
    pub id: MessageId,
    /// Receives the outcomes.
    pub outcomes: Arc<dyn Outcomes>,
}

impl CallMessage {
    /// Its size where it is merged, of which a call takes [`MAX_MERGED_BYTES`]: of its frame, or of its
    /// id and a comma in proportion to the limit on ids, whichever is larger.
    fn merge_size(&self) -> usize {
        self.payload.frame_len().max(share_of_metadata(self.id.as_str().len() + 1))
    }
}

/// What HTTP/2 adds to the size of an entry of metadata: its name and 32 bytes.
const ENTRY: usize = MESSAGE_ID.len() + 32;

/// The size of metadata as the size of content that is as large in proportion to its limit.
const fn share_of_metadata(bytes: usize) -> usize {
    (bytes * MAX_MERGED_BYTES).div_ceil(MAX_MERGED_METADATA)
}

/// The ids of messages as one entry of metadata, with commas between them, which is the same to gRPC as an
/// entry for each (`PROTOCOL-HTTP2.md`, Custom-Metadata). `None` if none of them is valid there: metadata
/// is printable ASCII.
pub(super) fn id_list<'a>(ids: impl Iterator<Item = &'a MessageId> + Clone) -> Option<HeaderValue> {
    let ids = ids.map(MessageId::as_str).filter(|id| is_valid_in_list(id));
    let mut list = BytesMut::with_capacity(ids.clone().map(|id| id.len() + 1).sum());
    for id in ids {
        if !list.is_empty() {
            list.put_u8(b',');
        }
        list.put_slice(id.as_bytes());
    }
    let mut value = HeaderValue::from_maybe_shared(list.freeze()).ok().filter(|list| !list.is_empty())?;
    // Keeps it out of HPACK's table, where it is of no use and drives out what every call has.
    value.set_sensitive(true);
    Some(value)
}

fn is_valid_in_list(id: &str) -> bool {
    id.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b',')
}

/// Messages that are shared by calls.
#[derive(Debug, Default)]
pub struct Run {
    messages: Vec<CallMessage>,
    size: RunSize,
    /// The ids as metadata; encoded on first use, for all calls.
    ids: OnceLock<Option<HeaderValue>>,
}

/// The size of messages.
#[derive(Clone, Copy, Debug)]
struct RunSize {
    /// Of their content.
    bytes: usize,
    /// Where they are merged.
    merged: usize,
}

impl Default for RunSize {
    /// That of an entry of metadata without ids.
    fn default() -> Self {
        Self { bytes: 0, merged: share_of_metadata(ENTRY) }
    }
}

impl RunSize {
    fn of(messages: &[CallMessage]) -> Self {
        messages.iter().fold(Self::default(), Self::with)
    }

    fn with(self, message: &CallMessage) -> Self {
        let bytes = self.bytes + message.payload.len();
        Self { bytes, merged: self.merged + message.merge_size() }
    }
}

impl Run {
    /// One message.
    pub fn one(message: CallMessage) -> Self {
        let size = RunSize::of(std::slice::from_ref(&message));
        Self { size, messages: vec![message], ids: OnceLock::new() }
    }

    /// Adds a message of the same room and the same partition.
    ///
    /// # Errors
    /// With the message if another run should begin.
    pub fn push(&mut self, message: CallMessage) -> Result<(), CallMessage> {
        let size = self.size.with(&message);
        if self.messages.len() >= MAX_RUN || size.merged > MAX_MERGED_BYTES {
            return Err(message);
        }
        self.messages.push(message);
        self.size = size;
        Ok(())
    }
}

/// The messages of one call that have no outcome yet; at least one. Dropping it reports that the call
/// will not be made.
#[derive(Debug)]
pub struct MessageRun {
    run: Arc<Run>,
    range: Range<u32>,
    /// The number of the call, if this reports its outcome.
    call: Option<u32>,
}

impl MessageRun {
    /// For the call with this number.
    pub fn new(run: Arc<Run>, call: usize) -> Self {
        let range = 0..run.messages.len() as u32;
        Self { run, range, call: Some(call as u32) }
    }

    pub(super) fn messages(&self) -> &[CallMessage] {
        self.run.messages.get(self.range.start as usize..self.range.end as usize).unwrap_or_default()
    }

    /// The first message.
    pub(super) fn first(&self) -> &CallMessage {
        &self.run.messages[self.range.start as usize]
    }

    /// The ids of the messages as metadata.
    pub(super) fn ids(&self) -> Option<HeaderValue> {
        let encode = || id_list(self.messages().iter().map(|message| &message.id));
        if self.is_whole() { self.run.ids.get_or_init(encode).clone() } else { encode() }
    }

    fn is_whole(&self) -> bool {
        self.len() == self.run.messages.len()
    }

    /// How many messages.
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// The size of their content.
    pub(super) fn bytes(&self) -> usize {
        self.size().bytes
    }

    /// Their size where they are merged; a call takes [`MAX_MERGED_BYTES`].
    pub(super) fn merge_size(&self) -> usize {
        self.size().merged
    }

    fn size(&self) -> RunSize {
        if self.is_whole() { self.run.size } else { RunSize::of(self.messages()) }
    }

    /// Takes the first of several messages, fewer than all.
    pub(super) fn split_first(&mut self, count: usize) -> Self {
        let first = self.range.start..self.range.start + count as u32;
        self.range.start = first.end;
        Self { run: Arc::clone(&self.run), range: first, call: self.call }
    }

    /// The same messages, without reporting their outcomes.
    pub(super) fn silent(&self) -> Self {
        Self { run: Arc::clone(&self.run), range: self.range.clone(), call: None }
    }

    /// Whether the messages were cancelled. They are of one partition, and cancelled together.
    pub(super) fn is_cancelled(&self) -> bool {
        self.first().outcomes.is_cancelled()
    }

    /// Reports the outcome of all messages, each with its own hold.
    pub(super) fn tell(mut self, outcome: &CallOutcome, hold: impl FnMut(usize) -> Option<OrderHold>) {
        self.report(outcome, hold);
    }

    fn report(&mut self, outcome: &CallOutcome, mut hold: impl FnMut(usize) -> Option<OrderHold>) {
        let Some(call) = self.call.take() else { return };
        for (at, message) in self.messages().iter().enumerate() {
            if message.outcomes.ended(call as usize, outcome.clone(), hold(at)) {
                Arc::clone(&message.outcomes).finish();
            }
        }
    }
}

impl Drop for MessageRun {
    fn drop(&mut self) {
        if self.call.is_some() {
            let why = "the comet's task ended before its call did";
            self.report(&CallOutcome::Unreachable(why.into()), |_| None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_list_of_those_that_are_valid_in_it() {
        let list = |ids: &[&str]| {
            let ids: Vec<MessageId> = ids.iter().map(|id| (*id).into()).collect();
            id_list(ids.iter())
        };
        assert_eq!(list(&["push/0/1"]).expect("one"), "push/0/1");
        assert_eq!(list(&["push/0/1", "push/0/3"]).expect("two"), "push/0/1,push/0/3");
        assert_eq!(list(&["line\nbreak", "a,b", "\u{e9}", "push/0/3"]).expect("one"), "push/0/3");
        assert_eq!(list(&["line\nbreak"]), None);
    }
}
