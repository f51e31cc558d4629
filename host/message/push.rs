//! Decodes a `PushMsg`, like the code that prost generates but with cheaper keys.
//!
//! A record of 1 MB can name 170,000 keys. They are counted before they are decoded, and decoded
//! directly into the gateway's type instead of into strings first.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType, decode_key, int32, skip_field, string};

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
/// as far as it can be parsed.
pub(super) fn count_keys(mut value: &[u8]) -> usize {
    let mut keys = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut value) {
        if skip_field(wire_type, tag, &mut value, DecodeContext::default()).is_err() {
            break;
        }
        keys += usize::from(tag == KEYS && wire_type == WireType::LengthDelimited);
    }
    keys
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
        assert_eq!(count_keys(value), 1);
        assert_eq!(decoded(Bytes::from_static(value)).expect("decodes").keys, [Arc::from("b")]);
    }
}
