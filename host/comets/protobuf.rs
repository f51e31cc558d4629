//! Fields of protobuf messages, written directly. Pure.

use bytes::{BufMut as _, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

/// A number that is not 0, as in proto3.
pub(super) fn put_int(tag: u8, value: u64, buffer: &mut BytesMut) {
    if value != 0 {
        buffer.put_u8(tag);
        encode_varint(value, buffer);
    }
}

pub(super) fn int_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// A text that is not empty, as in proto3.
pub(super) fn put_text(tag: u8, text: &str, buffer: &mut BytesMut) {
    if !text.is_empty() {
        put_item(tag, text, buffer);
    }
}

pub(super) fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { item_len(text) }
}

/// A text of a list, which may be empty.
pub(super) fn put_item(tag: u8, text: &str, buffer: &mut BytesMut) {
    buffer.put_u8(tag);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}

pub(super) fn item_len(text: &str) -> usize {
    1 + encoded_len_varint(text.len() as u64) + text.len()
}

/// An int32 as it is written: a negative one takes ten bytes.
pub(super) fn int32(value: i32) -> u64 {
    i64::from(value) as u64
}
