//! Bounds what a server may send: a stream that parses replies and rejects oversized ones.
//!
//! The `redis` crate's decoder buffers a whole reply of any length. This stream reads announced
//! lengths before the content arrives. A string above its limit is replaced by nil and its bytes are
//! skipped. The connection fails if the replies to one pipeline exceed their limit, or if a line does
//! not end.
//!
//! It knows RESP, but no commands.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::metrics::Metrics;

/// Maximum length of a line: an error, a number, a length. Redis' own are shorter.
const MAX_LINE: usize = 64 * 1024;
/// Maximum nesting of arrays. `CLUSTER SLOTS` has four levels.
const MAX_DEPTH: usize = 32;
/// Approximate memory of an element besides its bytes.
const ELEMENT_OVERHEAD: usize = 48;
/// Bytes per read from the socket.
const CHUNK: usize = 16 * 1024;

/// The limits.
#[derive(Clone, Debug)]
pub(super) struct ReplyLimits {
    /// Maximum length of a string; longer ones are replaced by nil.
    pub(super) value: usize,
    /// Approximate maximum memory of the replies to one pipeline.
    pub(super) replies: usize,
    pub(super) metrics: Metrics,
}

/// Why a server's data was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RejectedReply {
    /// Oversized replies.
    TooLarge(String),
    /// Data that no Redis sends: malformed, or an endless line.
    Malformed(String),
}

/// Measures the replies of one connection; shared by its stream and the pipelines that wait.
#[derive(Debug)]
pub(super) struct ReplyMeter {
    reply_limits: ReplyLimits,
    /// Bytes received since the last pipeline was complete.
    since: AtomicUsize,
    next: AtomicU64,
    /// The pipelines that wait for replies, in the order in which they were sent.
    waiting: Mutex<BTreeSet<u64>>,
    /// The rejected data, and the pipeline that it was for.
    excess: Mutex<Option<(RejectedReply, Option<u64>)>>,
}

/// A pipeline that waits for its replies.
pub(super) struct PipelineGuard<'a> {
    meter: &'a ReplyMeter,
    number: u64,
}

impl ReplyMeter {
    pub(super) fn new(reply_limits: ReplyLimits) -> Arc<Self> {
        Arc::new(Self {
            reply_limits,
            since: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            excess: Mutex::default(),
        })
    }

    /// Registers a pipeline that is about to be sent.
    pub(super) fn enter(&self) -> PipelineGuard<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(number);
        PipelineGuard { meter: self, number }
    }

    /// The reason why data on this connection was rejected.
    pub(super) fn excess(&self) -> Option<RejectedReply> {
        self.excess.lock().as_ref().map(|(excess, _)| excess.clone())
    }

    fn take(&self, bytes: usize) -> Result<(), RejectedReply> {
        let most = self.reply_limits.replies;
        let before = self.since.fetch_add(bytes.min(most.saturating_add(1)), Ordering::Relaxed);
        if before.saturating_add(bytes) <= most {
            return Ok(());
        }
        Err(RejectedReply::TooLarge(format!("replies of more than {most} bytes")))
    }

    fn exceeded(&self, excess: RejectedReply) {
        self.reply_limits.metrics.reply_refused();
        let first = self.waiting.lock().first().copied();
        self.excess.lock().get_or_insert((excess, first));
    }
}

impl PipelineGuard<'_> {
    /// All replies have been received: further data belongs to the next pipeline.
    pub(super) fn complete(&self) {
        self.meter.since.store(0, Ordering::Relaxed);
    }

    /// The reason why the connection failed, if this pipeline's replies were oversized, or if the
    /// data was not valid RESP.
    pub(super) fn excess(&self) -> Option<RejectedReply> {
        match &*self.meter.excess.lock() {
            Some((excess @ RejectedReply::Malformed(_), _)) => Some(excess.clone()),
            Some((excess, at)) if *at == Some(self.number) => Some(excess.clone()),
            _ => None,
        }
    }
}

impl Drop for PipelineGuard<'_> {
    fn drop(&mut self) {
        self.meter.waiting.lock().remove(&self.number);
    }
}

/// A string of which `left` bytes are missing, including its end of line.
#[derive(Debug)]
struct PartialString {
    left: usize,
    keep: bool,
}

/// Parses replies incrementally.
#[derive(Debug, Default)]
pub(super) struct RespScanner {
    /// The received part of an incomplete line.
    partial_line: Vec<u8>,
    /// The current string, if inside one.
    string: Option<PartialString>,
    /// The number of missing elements of each open array, outermost first.
    open: Vec<usize>,
}

impl RespScanner {
    /// Parses bytes, and appends accepted ones to `out`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        meter: &ReplyMeter,
    ) -> Result<(), RejectedReply> {
        while !bytes.is_empty() {
            if let Some(PartialString { left, keep }) = &mut self.string {
                let (part, rest) = bytes.split_at(bytes.len().min(*left));
                bytes = rest;
                *left -= part.len();
                if *keep {
                    out.extend_from_slice(part);
                }
                if *left == 0 {
                    self.string = None;
                    self.element();
                }
                continue;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            bytes = rest;
            if self.partial_line.len() + part.len() > MAX_LINE {
                return Err(RejectedReply::Malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            match end {
                Some(_) if self.partial_line.is_empty() => self.line(part, out, meter)?,
                Some(_) => {
                    let mut line = std::mem::take(&mut self.partial_line);
                    line.extend_from_slice(part);
                    self.line(&line, out, meter)?;
                }
                None => self.partial_line.extend_from_slice(part),
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>, meter: &ReplyMeter) -> Result<(), RejectedReply> {
        meter.take(line.len() + ELEMENT_OVERHEAD)?;
        // The decoder would continue after any other line end, and see other lengths.
        if !line.ends_with(b"\r\n") {
            return Err(RejectedReply::Malformed("a line that ends without a carriage return".to_owned()));
        }
        let elements = match line.first() {
            Some(b'$' | b'!' | b'=') => return self.string(line, out, meter),
            Some(b'*' | b'~' | b'>') => number(line)?,
            Some(b'%') => number(line)?.map(|pairs| pairs.saturating_mul(2)),
            Some(b'|') => number(line)?.map(|pairs| pairs.saturating_mul(2).saturating_add(1)),
            _ => None,
        };
        out.extend_from_slice(line);
        match elements {
            None | Some(0) => self.element(),
            Some(elements) => {
                // Already announced: reject before the elements arrive.
                if elements.saturating_mul(4) > meter.reply_limits.replies || self.open.len() >= MAX_DEPTH {
                    return Err(RejectedReply::TooLarge(format!("an array of {elements} elements")));
                }
                self.open.push(elements);
            }
        }
        Ok(())
    }

    fn string(&mut self, line: &[u8], out: &mut Vec<u8>, meter: &ReplyMeter) -> Result<(), RejectedReply> {
        let Some(length) = number(line)? else {
            out.extend_from_slice(line);
            self.element();
            return Ok(());
        };
        meter.take(length).map_err(|excess| match excess {
            RejectedReply::TooLarge(why) => {
                RejectedReply::TooLarge(format!("a string of {length} bytes, in {why}"))
            }
            other => other,
        })?;
        let keep = length <= meter.reply_limits.value;
        if keep {
            out.extend_from_slice(line);
        } else {
            meter.reply_limits.metrics.value_refused(length);
            out.extend_from_slice(b"$-1\r\n");
        }
        self.string = Some(PartialString { left: length.saturating_add(2), keep });
        Ok(())
    }

    /// Completes an element, and the arrays that end with it.
    fn element(&mut self) {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
    }
}

/// The number in a line; `None` for -1, which means nil. Redis writes numbers in one form only:
/// anything ambiguous is rejected.
fn number(line: &[u8]) -> Result<Option<usize>, RejectedReply> {
    let text = line.get(1..).and_then(|text| text.strip_suffix(b"\r\n")).unwrap_or_default();
    if text == b"-1" {
        return Ok(None);
    }
    let digits = Some(text).filter(|text| text.iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    number.map(Some).ok_or_else(|| RejectedReply::Malformed("a length that is not a number".to_owned()))
}

/// A stream that lets only bounded replies through.
pub(super) struct BoundedStream<S> {
    stream: S,
    meter: Arc<ReplyMeter>,
    scanner: RespScanner,
    chunk: Box<[u8]>,
    /// Accepted bytes; those from `taken` on have not been read yet.
    through: Vec<u8>,
    taken: usize,
}

impl<S> BoundedStream<S> {
    pub(super) fn new(stream: S, meter: Arc<ReplyMeter>) -> Self {
        Self {
            stream,
            meter,
            scanner: RespScanner::default(),
            chunk: vec![0; CHUNK].into(),
            through: Vec::with_capacity(CHUNK),
            taken: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.through.len() {
            this.taken = 0;
            this.through.clear();
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(excess) = this.scanner.feed(chunk.filled(), &mut this.through, &this.meter) {
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, format!("{excess:?}"));
                this.meter.exceeded(excess);
                return Poll::Ready(Err(error));
            }
        }
        let left = &this.through[this.taken..];
        let part = &left[..left.len().min(out.remaining())];
        out.put_slice(part);
        this.taken += part.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;
    use proptest::prelude::*;

    fn meter(value: usize, replies: usize) -> Arc<ReplyMeter> {
        let metrics = Metrics::register(&mut Registry::default());
        ReplyMeter::new(ReplyLimits { value, replies, metrics })
    }

    /// The accepted bytes of these replies, received in pieces of this size.
    fn through(replies: &[u8], size: usize, meter: &ReplyMeter) -> Result<Vec<u8>, RejectedReply> {
        let mut scanner = RespScanner::default();
        let mut out = Vec::new();
        for piece in replies.chunks(size) {
            scanner.feed(piece, &mut out, meter)?;
        }
        assert_eq!(scanner.open, [0; 0]);
        Ok(out)
    }

    #[test]
    fn replies_within_limits_pass_unchanged_however_split() {
        let replies = b"+OK\r\n-ERR no\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n*0\r\n*3\r\n$1\r\na\r\n*1\r\n:1\r\n$0\r\n\r\n%1\r\n+k\r\n+v\r\n";
        for size in 1..replies.len() {
            assert_eq!(through(replies, size, &meter(3, 10_000)), Ok(replies.to_vec()), "{size}");
        }
    }

    #[test]
    fn an_oversized_string_becomes_nil() {
        let replies = b"*3\r\n$1\r\na\r\n$5\r\nlong!\r\n$1\r\nb\r\n$4\r\nlong\r\n+OK\r\n";
        let expected = b"*3\r\n$1\r\na\r\n$-1\r\n$1\r\nb\r\n$-1\r\n+OK\r\n";
        for size in 1..replies.len() {
            assert_eq!(through(replies, size, &meter(3, 10_000)), Ok(expected.to_vec()), "{size}");
        }
    }

    #[test]
    fn endless_replies_are_rejected_early() {
        let large = |replies: &[u8]| {
            matches!(through(replies, 100, &meter(100, 1_000)), Err(RejectedReply::TooLarge(_)))
        };
        assert!(large(b"$99999999999\r\n"));
        assert!(large(b"*99999999999\r\n"));
        assert!(large(b"*2\r\n$10\r\n0123456789\r\n$990\r\n"));
        assert!(large(&b"*9\r\n:1\r\n".repeat(40)), "many small ones");
        assert!(large(&b"*1\r\n".repeat(40)), "or one in the other");
        let nonsense = |replies: &[u8]| {
            matches!(through(replies, 100, &meter(100, usize::MAX)), Err(RejectedReply::Malformed(_)))
        };
        assert!(nonsense(&[b'+'; MAX_LINE + 1]));
        assert!(nonsense(b"+one\n$5\r\n") && nonsense(b"$-0\r\n") && nonsense(b"*+1\r\n"), "two readings");
        assert!(nonsense(b"$x\r\n") && nonsense(b"*1e9\r\n") && nonsense(b"$99999999999999999999999\r\n"));
    }

    #[test]
    fn the_limit_applies_to_the_first_waiting_pipeline() {
        let meter = meter(1_000, 1_000);
        let (first, second) = (meter.enter(), meter.enter());
        let reply = [&b"$600\r\n"[..], &[b'x'; 600], b"\r\n"].concat();
        through(&reply, 100, &meter).expect("within the bound");
        first.complete();
        drop(first);
        let third = meter.enter();
        through(&reply, 100, &meter).expect("another pipeline's");
        let excess = through(&reply, 100, &meter).expect_err("too much for one");
        meter.exceeded(excess.clone());
        assert_eq!((second.excess(), third.excess()), (Some(excess), None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            replies in proptest::collection::vec(
                prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'0'), any::<u8>()],
                0..200,
            ),
            size in 1_usize..20,
        ) {
            let meter = meter(4, 500);
            let mut scanner = RespScanner::default();
            let mut out = Vec::new();
            for piece in replies.chunks(size) {
                if scanner.feed(piece, &mut out, &meter).is_err() {
                    break;
                }
            }
            prop_assert!(out.len() <= replies.len() * 2);
        }
    }
}
