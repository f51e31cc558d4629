//! Decodes a `PushMsg`, like the code that prost generates but with cheaper keys.
//!
//! A record of 1 MB can name 170,000 keys. They are counted before they are decoded, and decoded
//! directly into the gateway's type instead of into strings first.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType, int32, skip_field, string};

/// The field `keys` of `PushMsg` (proto/push.proto).
const KEYS: u32 = 6;

/// A decoded `PushMsg`.
#[derive(Debug, Default)]
pub(super) struct PushMsg {
    pub(super) kind: i32,
    pub(super) operation: i32,
    pub(super) speed: i32,
    pub(super) server: String,
    pub(super) room: String,
    pub(super) keys: Vec<Arc<str>>,
    pub(super) msg: Bytes,
    /// A buffer for the key that is being decoded.
    key: String,
}

impl PushMsg {
    /// Decodes a value with this many keys in place of the last one, whose buffers are used again.
    pub(super) fn decode(&mut self, value: Bytes, keys: usize) -> Result<(), DecodeError> {
        prost::Message::clear(self);
        self.keys.reserve_exact(keys);
        prost::Message::merge(self, value)
    }
}

impl prost::Message for PushMsg {
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => int32::merge(wire_type, &mut self.kind, buf, ctx),
            2 => int32::merge(wire_type, &mut self.operation, buf, ctx),
            3 => int32::merge(wire_type, &mut self.speed, buf, ctx),
            4 => string::merge(wire_type, &mut self.server, buf, ctx),
            5 => string::merge(wire_type, &mut self.room, buf, ctx),
            KEYS => {
                string::merge(wire_type, &mut self.key, buf, ctx)?;
                self.keys.push(Arc::from(self.key.as_str()));
                Ok(())
            }
            7 => encoding::bytes::merge(wire_type, &mut self.msg, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    // Never encoded: the generated type does that.
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {
        (self.kind, self.operation, self.speed) = (0, 0, 0);
        (self.keys, self.msg) = (Vec::new(), Bytes::new());
        [&mut self.server, &mut self.room].into_iter().for_each(String::clear);
    }
}

/// How many keys a value has; never fewer than decoding would produce. A malformed value is counted
/// as far as it can be parsed; fields inside unknown groups count as well.
pub(super) fn count_keys(mut value: &[u8]) -> usize {
    let mut keys = 0;
    while let Some(key) = varint(&mut value) {
        let field = u32::try_from(key >> 3).unwrap_or(0);
        let skipped = match key & 7 {
            0 => varint(&mut value).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut value).and_then(|length| usize::try_from(length).ok()),
            // The start or end of a group.
            3 | 4 => Some(0),
            5 => Some(4),
            _ => None,
        };
        let Some(rest) = skipped.and_then(|length| value.get(length..)) else { break };
        keys += usize::from(field == KEYS && key & 7 == 2);
        value = rest;
    }
    keys
}

fn varint(value: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..10 {
        let (byte, rest) = value.split_first()?;
        *value = rest;
        number |= u64::from(byte & 0x7f) << (7 * at).min(63);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Audience, encode};

    fn decoded(value: Bytes) -> Result<PushMsg, DecodeError> {
        let mut push = PushMsg::default();
        push.decode(value, 0)?;
        Ok(push)
    }

    proptest! {
        #[test]
        fn keys_are_counted_as_they_are_decoded(
            keys in proptest::collection::vec("[a-z]{0,200}", 0..40), body in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let audience = Audience::Keys { server: None, keys: keys.iter().map(|key| Arc::from(&**key)).collect() };
            let value = encode(&audience, 4, &body);
            prop_assert_eq!(count_keys(&value), keys.len());
            prop_assert_eq!(decoded(value).expect("decodes").keys.len(), keys.len());
        }

        #[test]
        fn never_fewer_are_counted_than_are_decoded(value in proptest::collection::vec(0..64u8, 0..64)) {
            let counted = count_keys(&value);
            if let Ok(push) = decoded(value.into()) {
                prop_assert!(push.keys.len() <= counted, "{} of {counted}", push.keys.len());
            }
        }
    }

    #[test]
    fn keys_behind_a_group_count() {
        // Field 9 begins and ends a group (with a key inside); then a key.
        let value: &[u8] = b"\x4b\x32\x01a\x4c\x32\x01b";
        assert_eq!(count_keys(value), 2);
        assert_eq!(decoded(Bytes::from_static(value)).expect("decodes").keys, [Arc::from("b")]);
    }
}
