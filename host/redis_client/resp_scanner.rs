//! Parses replies incrementally and rejects oversized ones.
//!
//! The `redis` crate's decoder buffers a whole reply of any length. The scanner reads announced lengths
//! before the content arrives. A string above its limit is replaced by nil and its bytes are skipped. The
//! connection fails if the replies to one pipeline exceed their limit, or if a line does not end.
//!
//! Pushes belong to no pipeline, so they are counted separately, each on its own.
//!
//! It knows RESP, but no commands.

use super::reply_meter::{RejectedReply, ReplyMeter};

/// Maximum length of a line: an error, a number, a length. Redis' own are shorter.
const MAX_LINE: usize = 64 * 1024;
/// Maximum nesting of arrays. `CLUSTER SLOTS` has four levels.
const MAX_DEPTH: usize = 32;
/// Approximate memory of an element besides its bytes.
const ELEMENT_OVERHEAD: usize = 48;

/// Maximum bytes of a push. It names a key, which rarely has more than a hundred.
const MAX_PUSH: usize = 64 * 1024;

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
    /// Bytes of the current push, if inside one.
    push: Option<usize>,
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
        if line.first() == Some(&b'>') && self.open.is_empty() {
            self.push = Some(0);
        }
        self.take(line.len() + ELEMENT_OVERHEAD, meter)?;
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
                let most = if self.push.is_some() { MAX_PUSH } else { meter.most() };
                if elements.saturating_mul(4) > most || self.open.len() >= MAX_DEPTH {
                    if self.push.is_some() {
                        return Err(large_push());
                    }
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
        self.take(length, meter).map_err(|excess| match excess {
            RejectedReply::TooLarge(why) => {
                RejectedReply::TooLarge(format!("a string of {length} bytes, in {why}"))
            }
            other => other,
        })?;
        let keep = length <= meter.longest_value();
        if keep {
            out.extend_from_slice(line);
        } else {
            meter.value_refused(length);
            out.extend_from_slice(b"$-1\r\n");
        }
        self.string = Some(PartialString { left: length.saturating_add(2), keep });
        Ok(())
    }

    /// Counts bytes: those of a push are nobody's reply.
    fn take(&mut self, bytes: usize, meter: &ReplyMeter) -> Result<(), RejectedReply> {
        let Some(before) = &mut self.push else { return meter.take(bytes) };
        *before = before.saturating_add(bytes);
        if *before > MAX_PUSH { Err(large_push()) } else { Ok(()) }
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
        self.push = None;
    }
}

/// Not a matter of what was asked: no pipeline is to be split because of it.
fn large_push() -> RejectedReply {
    RejectedReply::Malformed(format!("a push of more than {MAX_PUSH} bytes"))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use proptest::prelude::*;

    use super::super::metrics::Metrics;
    use super::super::reply_meter::ReplyLimits;
    use super::*;

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

    #[test]
    fn a_push_is_bounded_and_is_nobody_s_reply() {
        let (meter, push) = (meter(100, 500), b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n");
        assert_eq!(through(&push.repeat(100), 7, &meter), Ok(push.repeat(100)), "none of them is counted");
        assert_eq!(through(b">0\r\n$100\r\n", 7, &meter), Ok(b">0\r\n$100\r\n".to_vec()), "it has ended");
        assert!(matches!(through(&b":1\r\n".repeat(10), 100, &meter), Err(RejectedReply::TooLarge(_))));
        let rejected = |push: &[u8]| matches!(through(push, 100, &meter), Err(RejectedReply::Malformed(_)));
        assert!(rejected(b">99999999\r\n") && rejected(b">1\r\n$65536\r\n"));
        assert!(rejected(&[&b">2000\r\n"[..], &b":1\r\n".repeat(2_000)].concat()));
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
