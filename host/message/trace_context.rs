//! A producer's trace context, as in W3C's Trace Context: which trace a message belongs to.
//!
//! It is passed on as it is, whether the gateway traces or not. One that is not valid is not passed on.
//! A dead letter is a copy of its record and has the producer's headers, valid or not.

use bytes::Bytes;

use super::{Header, Record, TRACEPARENT, TRACESTATE};

/// A valid trace context: its headers' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext<'a> {
    parent: &'a Bytes,
    state: Option<&'a Bytes>,
}

/// `version-traceid-parentid-flags` in lower-case hexadecimal digits.
const PARENT_LEN: usize = 55;
const TRACE_ID: std::ops::Range<usize> = 3..35;
const PARENT_ID: std::ops::Range<usize> = 36..52;
const FLAGS: usize = 53;

/// What W3C asks for at least; longer values are not passed on.
const MAX_STATE: usize = 512;
const MAX_STATE_MEMBERS: usize = 32;

impl<'a> TraceContext<'a> {
    /// The context with these headers; `None` if `traceparent` is invalid. An invalid `tracestate` is
    /// left out.
    pub fn new(parent: &'a Bytes, state: Option<&'a Bytes>) -> Option<Self> {
        is_parent(parent).then(|| Self { parent, state: state.filter(|state| is_state(state)) })
    }

    /// `traceparent`: 55 bytes of ASCII.
    pub fn parent(self) -> &'a Bytes {
        self.parent
    }

    /// `tracestate`: printable ASCII.
    pub fn state(self) -> Option<&'a Bytes> {
        self.state
    }

    /// The id of the trace.
    pub fn trace_id(self) -> u128 {
        self.digits(TRACE_ID).and_then(|text| u128::from_str_radix(text, 16).ok()).unwrap_or_default()
    }

    /// The id of the producer's span.
    pub fn parent_id(self) -> u64 {
        self.digits(PARENT_ID).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or_default()
    }

    /// Whether the producer traces the message.
    pub fn is_sampled(self) -> bool {
        let flags = self.digits(FLAGS..PARENT_LEN).and_then(|text| u8::from_str_radix(text, 16).ok());
        flags.is_some_and(|flags| flags & 1 == 1)
    }

    /// The headers of a record that passes it on.
    pub fn headers(self) -> impl Iterator<Item = Header> {
        let state = self.state.map(|state| Header::new(TRACESTATE, state.clone()));
        std::iter::once(Header::new(TRACEPARENT, self.parent.clone())).chain(state)
    }

    fn digits(&self, range: std::ops::Range<usize>) -> Option<&'a str> {
        std::str::from_utf8(self.parent.get(range)?).ok()
    }
}

impl Record {
    /// The producer's trace context, if it has a valid one. Of several, the first counts.
    pub fn trace_context(&self) -> Option<TraceContext<'_>> {
        if self.headers.is_empty() {
            return None;
        }
        let parent = self.header(TRACEPARENT)?;
        TraceContext::new(parent, self.header(TRACESTATE))
    }
}

/// Version 00, or a later one that has no more fields; neither the trace nor the span is zero.
fn is_parent(value: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_zero = |range: std::ops::Range<usize>| value[range].iter().all(|byte| *byte == b'0');
    value.len() == PARENT_LEN
        && value.iter().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => *byte == b'-',
            _ => is_digit(byte),
        })
        && &value[..2] != b"ff"
        && !is_zero(TRACE_ID)
        && !is_zero(PARENT_ID)
}

/// A list of `key=value` with commas between them.
fn is_state(value: &[u8]) -> bool {
    let is_key = |key: &[u8]| {
        let allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
        matches!(key.first(), Some(b'a'..=b'z' | b'0'..=b'9')) && key.iter().all(allowed)
    };
    let is_member = |member: &[u8]| {
        let Some(at) = member.iter().position(|byte| *byte == b'=') else { return member.is_empty() };
        let (key, value) = (&member[..at], &member[at + 1..]);
        is_key(key) && !value.is_empty() && value.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'=')
    };
    let mut members = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    !value.trim_ascii().is_empty()
        && value.len() <= MAX_STATE
        && value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
        && members.clone().count() <= MAX_STATE_MEMBERS
        && members.all(is_member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn is_valid(parent: &str) -> bool {
        TraceContext::new(&Bytes::copy_from_slice(parent.as_bytes()), None).is_some()
    }

    #[test]
    fn the_ids_of_a_context_are_read() {
        let parent = Bytes::from_static(PARENT.as_bytes());
        let context = TraceContext::new(&parent, None).expect("valid");
        assert_eq!(context.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.parent_id(), 0x00f0_67aa_0ba9_02b7);
        assert!(context.is_sampled());
        let unsampled = Bytes::from(PARENT.replace("-01", "-02"));
        assert!(!TraceContext::new(&unsampled, None).expect("valid").is_sampled());
    }

    #[test]
    fn what_w3c_forbids_is_invalid() {
        assert!(is_valid(PARENT) && is_valid(&PARENT.replacen("00", "fe", 1)));
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let invalid = [
            String::new(),
            PARENT.to_uppercase(),
            PARENT.replacen("00", "ff", 1),
            PARENT.replace('-', "_"),
            PARENT.replacen("4b", "4g", 1),
            format!("{PARENT}-00"),
            PARENT[..54].to_owned(),
            format!("{}\n", &PARENT[..54]),
            zero_trace,
            zero_parent,
        ];
        for parent in invalid {
            assert!(!is_valid(&parent), "{parent}");
        }
    }

    #[test]
    fn an_invalid_state_is_left_out_and_the_parent_kept() {
        let parent = Bytes::from_static(PARENT.as_bytes());
        let state = |text: &str| {
            let state = Bytes::copy_from_slice(text.as_bytes());
            TraceContext::new(&parent, Some(&state)).expect("the parent is valid").state().is_some()
        };
        for valid in ["rojo=00f067aa0ba902b7", "rojo=00f067,congo=t61rcWkgMzE", "a=1, b=2 ,,1@v=x y"] {
            assert!(state(valid), "{valid}");
        }
        let (many, long) = (vec!["a=1"; 33].join(","), format!("a={}", "1".repeat(511)));
        for invalid in ["", " ", "a", "a=", "=1", "A=1", "a=b=c", "a=1\r\nevil: 1", "a=\u{e9}", &many, &long]
        {
            assert!(!state(invalid), "{invalid}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_valid_is_printable(parent in proptest::collection::vec(any::<u8>(), 50..60), state: Vec<u8>) {
            let (parent, state) = (Bytes::from(parent), Bytes::from(state));
            if let Some(context) = TraceContext::new(&parent, Some(&state)) {
                prop_assert_ne!((context.trace_id(), context.parent_id()), (0, 0));
            }
            prop_assert!(!is_state(&state) || state.iter().all(|byte| *byte == b'\t' || (b' '..=b'~').contains(byte)));
        }
    }
}
