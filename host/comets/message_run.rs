//! The messages of one call: one, or several of a room that follow each other.
//!
//! A run is made once per room and batch and shared by the calls to all comets, so that a message costs
//! a comet's queue next to nothing: ids and frames are encoded once for all of them, and a call that ends
//! as a whole costs one lock, not one per message. Messages are settled one by one where their outcomes
//! differ: a call is then [split](MessageRun::split_first).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderValue;
use parking_lot::Mutex;
use smart_default::SmartDefault;

use super::hold::OrderHold;
use super::outcome::{CallOutcome, Outcomes};
use super::pending::{PendingPermit, ReservedBytes};
use super::wire::{self, Payload};
use crate::message::{MESSAGE_ID, MessageId};

/// The maximum number of messages for one room that are merged into one call.
pub(super) const MAX_MERGED_MESSAGES: usize = 100;
pub(super) const MAX_MERGED_BYTES: usize = 64 * 1024;
/// The maximum size of their ids as metadata: gRPC's C++ servers refuse more than 8 KiB by default. A trace
/// context takes up to 700 bytes.
const MAX_MERGED_METADATA: usize = 6 * 1024 + 512;
/// The maximum number of messages in a run. Runs are merged as a whole: shorter ones fill calls better.
const MAX_RUN: usize = 32;

/// A message for comets.
#[derive(Debug)]
pub struct CallMessage {
    /// Encoded once by [`Fleet::payload`](super::Fleet::payload) for all calls.
    pub payload: Payload,
    /// Its id, sent in the call's metadata.
    pub id: MessageId,
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
    let ids = ids.map(MessageId::as_str);
    let mut list = BytesMut::with_capacity(ids.clone().map(|id| id.len() + 1).sum());
    for id in ids.filter(|id| is_valid_in_list(id)) {
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

fn ids_of(messages: &[CallMessage]) -> Option<HeaderValue> {
    id_list(messages.iter().map(|message| &message.id))
}

fn frames_of(messages: &[CallMessage]) -> Bytes {
    wire::frames(messages.iter().map(|message| &message.payload))
}

fn is_valid_in_list(id: &str) -> bool {
    id.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b',')
}

/// Messages that will be shared by calls.
#[derive(Debug, Default)]
pub struct Run {
    messages: Vec<CallMessage>,
    size: RunSize,
    /// The pending bytes of the messages that do not hold them themselves.
    held: Option<PendingPermit>,
}

/// Messages that are shared by calls.
#[derive(Debug)]
struct SharedRun {
    messages: Vec<CallMessage>,
    size: RunSize,
    /// The ids as metadata, and goim's frames, for all calls. They are encoded on first use: what waits for
    /// a comet has its bodies once.
    ids: OnceLock<Option<HeaderValue>>,
    frames: OnceLock<Bytes>,
    /// Receives the outcomes.
    outcomes: Arc<dyn Outcomes>,
    /// How many calls there are, and which have ended.
    calls: u32,
    ended: Mutex<EndedCalls>,
    /// Until the last call has ended.
    _held: Option<PendingPermit>,
}

/// How many calls have ended.
#[derive(Debug, Default)]
struct EndedCalls {
    /// Those that ended for all messages at once.
    whole: u32,
    /// For each message, those that did not; empty if there are none.
    in_parts: Vec<u32>,
}

/// The size of messages.
#[derive(Clone, Copy, Debug, SmartDefault)]
struct RunSize {
    /// Of their content.
    bytes: usize,
    /// Where they are merged, with an entry of metadata without ids.
    #[default(share_of_metadata(ENTRY))]
    merged: usize,
    /// The pending bytes that the run has to hold.
    pending: usize,
}

impl RunSize {
    fn of(messages: &[CallMessage]) -> Self {
        messages.iter().fold(Self::default(), Self::with)
    }

    fn with(self, message: &CallMessage) -> Self {
        let CallMessage { payload, .. } = message;
        Self {
            bytes: self.bytes + payload.len(),
            merged: self.merged + message.merge_size(),
            pending: self.pending + payload.pending(),
        }
    }
}

impl Run {
    /// One message.
    pub fn one(message: CallMessage) -> Self {
        let size = RunSize::of(std::slice::from_ref(&message));
        Self { size, messages: vec![message], held: None }
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

impl Run {
    /// Holds what was promised to its messages by [`ReservedBytes`], until their last call has ended.
    pub fn hold(&mut self, reserved: &mut ReservedBytes) {
        self.held = reserved.take(self.size.pending);
    }

    /// Its messages in each of this many calls. The outcomes are reported there.
    pub fn into_calls(self, calls: usize, outcomes: Arc<dyn Outcomes>) -> impl Iterator<Item = MessageRun> {
        let Self { messages, size, held } = self;
        let (ids, frames, ended) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        let calls = calls as u32;
        let run = Arc::new(SharedRun { messages, size, ids, frames, outcomes, calls, ended, _held: held });
        (0..calls).map(move |call| {
            let range = 0..run.messages.len() as u32;
            MessageRun { run: Arc::clone(&run), range, call: Some(call) }
        })
    }
}

impl SharedRun {
    /// A call has ended for these messages.
    fn note_ended(&self, range: Range<u32>) {
        let all = 0..self.messages.len() as u32;
        let mut ended = self.ended.lock();
        let is_whole = range == all;
        if is_whole {
            ended.whole += 1;
        } else {
            ended.in_parts.resize(self.messages.len(), 0);
            range.clone().for_each(|at| ended.in_parts[at as usize] += 1);
        }
        if ended.in_parts.is_empty() {
            let are_all = ended.whole == self.calls;
            drop(ended);
            if are_all {
                Arc::clone(&self.outcomes).finish(all);
            }
            return;
        }
        let has_ended = |at: &u32| ended.whole + ended.in_parts[*at as usize] == self.calls;
        let finished: Vec<u32> = range.filter(has_ended).collect();
        drop(ended);
        finished.into_iter().for_each(|at| Arc::clone(&self.outcomes).finish(at..at + 1));
    }
}

/// The messages of one call that have no outcome yet; at least one. Dropping it reports that the call
/// will not be made.
#[derive(Debug)]
pub struct MessageRun {
    run: Arc<SharedRun>,
    range: Range<u32>,
    /// The number of the call, if this reports its outcome.
    call: Option<u32>,
}

impl MessageRun {
    pub(super) fn messages(&self) -> &[CallMessage] {
        self.run.messages.get(self.range.start as usize..self.range.end as usize).unwrap_or_default()
    }

    /// The first message.
    pub(super) fn first(&self) -> &CallMessage {
        &self.run.messages[self.range.start as usize]
    }

    /// The ids of the messages as metadata.
    pub(super) fn ids(&self) -> Option<HeaderValue> {
        let encode = || ids_of(self.messages());
        if self.is_whole() { self.run.ids.get_or_init(encode).clone() } else { encode() }
    }

    /// Their frames in goim's dialect, one after the other.
    pub(super) fn frames(&self) -> Bytes {
        let encode = || frames_of(self.messages());
        if self.is_whole() { self.run.frames.get_or_init(encode).clone() } else { encode() }
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
        self.run.outcomes.is_cancelled()
    }

    /// Reports the outcome of all messages, each with its own hold.
    pub(super) fn tell(mut self, outcome: &CallOutcome, hold: impl FnMut(usize) -> Option<OrderHold>) {
        self.report(outcome, hold);
    }

    fn report(&mut self, outcome: &CallOutcome, mut hold: impl FnMut(usize) -> Option<OrderHold>) {
        let Some(call) = self.call.take() else { return };
        if *outcome != CallOutcome::Acknowledged {
            for (at, message) in self.range.clone().enumerate() {
                self.run.outcomes.not_acknowledged(message, call as usize, outcome.clone(), hold(at));
            }
        }
        self.run.note_ended(self.range.clone());
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
    use proptest::prelude::*;

    use super::*;
    use crate::comets::wire::{Content, Dialect};

    /// Records the reported outcomes.
    #[derive(Debug, Default)]
    struct Told {
        finished: Mutex<Vec<u32>>,
        exceptions: Mutex<Vec<(u32, usize)>>,
    }

    impl Outcomes for Told {
        fn not_acknowledged(&self, message: u32, call: usize, _: CallOutcome, _: Option<OrderHold>) {
            assert!(!self.finished.lock().contains(&message), "before it is finished");
            self.exceptions.lock().push((message, call));
        }

        fn finish(self: Arc<Self>, messages: Range<u32>) {
            self.finished.lock().extend(messages);
        }

        fn is_cancelled(&self) -> bool {
            false
        }
    }

    fn run_of(messages: u32) -> Run {
        let body = Bytes::from_static(b"x");
        let content = Content { operation: 5, body: &body, sent_ms: 0, trace: None, replayed: false };
        let mut run = Run::default();
        for number in 0..messages {
            let payload = Payload::new(Dialect::Goim, &content);
            run.push(CallMessage { payload, id: number.to_string().into() }).expect("there is room");
        }
        run
    }

    proptest! {
        /// However calls are split, and in whatever order their parts end: each message is finished once,
        /// when all its calls have ended.
        #[test]
        fn a_message_is_finished_once_when_all_its_calls_have_ended(
            messages in 1..6u32, splits in proptest::collection::vec((0..6u32, any::<bool>()), 1..4), seed in any::<u64>(),
        ) {
            let told = Arc::new(Told::default());
            let calls = run_of(messages).into_calls(splits.len(), Arc::<Told>::clone(&told));
            let mut parts = Vec::new();
            for (mut call, (first, fails)) in calls.zip(&splits) {
                if (1..messages).contains(first) {
                    parts.push((call.split_first(*first as usize), *fails));
                }
                parts.push((call, *fails));
            }
            fastrand::Rng::with_seed(seed).shuffle(&mut parts);
            let mut open: Vec<usize> = vec![splits.len(); messages as usize];
            let mut failed = 0;
            for (part, fails) in parts {
                let range = part.range.clone();
                failed += if fails { part.len() } else { 0 };
                let outcome = if fails { CallOutcome::NobodyThere } else { CallOutcome::Acknowledged };
                part.tell(&outcome, |_| None);
                range.for_each(|at| open[at as usize] -= 1);
                let mut finished = told.finished.lock().clone();
                finished.sort_unstable();
                let ended: Vec<u32> = (0..messages).filter(|at| open[*at as usize] == 0).collect();
                prop_assert_eq!(finished, ended);
            }
            prop_assert_eq!(told.exceptions.lock().len(), failed);
        }
    }

    #[test]
    fn a_call_that_is_dropped_has_an_outcome() {
        let told = Arc::new(Told::default());
        let mut calls = run_of(2).into_calls(2, Arc::<Told>::clone(&told));
        drop(calls.next());
        assert!(told.finished.lock().is_empty());
        drop(calls.next());
        assert_eq!((told.finished.lock().len(), told.exceptions.lock().len()), (2, 4));
    }

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
