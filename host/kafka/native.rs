//! Header names as bytes, which librdkafka has and the bindings do not expose.
//!
//! Kafka defines header names as strings, but no broker checks that: producers in Go, and `kcat
//! -H`, write arbitrary bytes. `rdkafka`'s `Headers` unwraps their UTF-8, so a single record would
//! crash every process that reads it. No other code of the gateway may use it for a consumed
//! record. `OwnedHeaders::insert` accepts only UTF-8.
//!
//! librdkafka returns names as C strings: a name ends at its first NUL byte.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr;

use rdkafka::bindings as native;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};
use rdkafka::types::RDKafkaRespErr;

use crate::message::{MalformedHeaders, RawHeader};

/// The headers of a record that is still in librdkafka's memory.
#[derive(Clone, Copy)]
pub(super) struct Headers<'a> {
    list: *const native::rd_kafka_headers_t,
    /// The message that owns the list is borrowed for this long.
    _message: PhantomData<&'a ()>,
}

#[allow(unsafe_code, reason = "librdkafka's own functions are the only way to headers as bytes")]
impl<'a> Headers<'a> {
    /// The headers of a record; `None` if it has none.
    pub(super) fn of(message: &'a BorrowedMessage<'_>) -> Result<Option<Self>, MalformedHeaders> {
        let mut list = ptr::null_mut();
        // SAFETY: the pointer is that of a message that lives as long as `message`. The call parses
        // the headers when it is the first, and writes where they are; they belong to the message.
        let answer = unsafe { native::rd_kafka_message_headers(message.ptr(), &mut list) };
        match answer {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Some(Self { list, _message: PhantomData })),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__NOENT => Ok(None),
            _ => Err(MalformedHeaders),
        }
    }

    /// The headers of an owned list.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_list(list: &'a OwnedHeaders) -> Self {
        Self { list: ptr::from_ref(list.as_borrowed()).cast(), _message: PhantomData }
    }

    /// How many there are.
    fn count(self) -> usize {
        // SAFETY: the list lives as long as the message, which is borrowed.
        unsafe { native::rd_kafka_header_cnt(self.list) }
    }

    /// Names and values in order.
    pub(super) fn into_iter(self) -> impl Iterator<Item = RawHeader<'a>> + Clone {
        (0..self.count()).map_while(move |at| self.get(at))
    }

    fn get(self, at: usize) -> Option<RawHeader<'a>> {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as in `count`. The call writes to the three only when there is such a header.
        let answer =
            unsafe { native::rd_kafka_header_get_all(self.list, at, &mut name, &mut value, &mut size) };
        if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: librdkafka ends every name with a NUL byte (rd_kafka_header_add); name and value
        // live in the list and nobody changes them, as long as the message lives.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        // SAFETY: a value that is not null has `size` bytes; an empty one is not null either.
        let value =
            (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) });
        Some((name, value))
    }
}

/// Appends a header whose name may be any bytes.
#[allow(unsafe_code, reason = "librdkafka's own function is the only way to names as bytes")]
pub(super) fn add(headers: &mut OwnedHeaders, name: &[u8], value: Option<&[u8]>) {
    let list = ptr::from_ref(headers.as_borrowed()).cast_mut().cast::<native::rd_kafka_headers_t>();
    // A null pointer means that there is no value, which is not the same as an empty one; empty
    // slices have a pointer that is not null.
    let (value, size) =
        value.map_or((ptr::null(), 0), |value| (value.as_ptr().cast::<c_void>(), value.len()));
    // SAFETY: `as_borrowed` is the list's own pointer (rdkafka makes it so, and `OwnedHeaders::insert`
    // writes through the same), which is borrowed mutably here. Name and value are copied.
    unsafe {
        // Cannot fail: rdkafka_header.c returns NO_ERROR, or ends the process if it is out of memory.
        native::rd_kafka_header_add(
            list,
            name.as_ptr().cast::<c_char>(),
            name.len() as isize,
            value,
            size as isize,
        );
    }
}
