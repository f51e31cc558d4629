//! Header names that are not UTF-8, which `rdkafka` does not support: Kafka accepts any bytes, and
//! producers in other languages write them.

#![allow(unsafe_code, reason = "librdkafka's own functions are the only way to header names as bytes")]

use std::ffi::CStr;
use std::ptr;

use bytes::Bytes;
use rdkafka::bindings as native;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};
use rdkafka::types::RDKafkaRespErr;

/// Headers with these names.
pub(super) fn headers(pairs: &[(&[u8], &[u8])]) -> OwnedHeaders {
    let headers = OwnedHeaders::new();
    let list = ptr::from_ref(headers.as_borrowed()).cast_mut().cast::<native::rd_kafka_headers_t>();
    for (name, value) in pairs {
        let (name_size, value_size) = (name.len() as isize, value.len() as isize);
        // SAFETY: the list is that of `headers`, which is not shared; names and values are copied.
        unsafe {
            native::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name_size,
                value.as_ptr().cast(),
                value_size,
            )
        };
    }
    headers
}

/// The names and values of a record.
pub(super) fn read(message: &BorrowedMessage<'_>) -> Vec<(Bytes, Option<Bytes>)> {
    let mut list = ptr::null_mut();
    // SAFETY: the message is alive.
    let answer = unsafe { native::rd_kafka_message_headers(message.ptr(), &mut list) };
    if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Vec::new();
    }
    let mut read = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list belongs to the message.
        let answer =
            unsafe { native::rd_kafka_header_get_all(list, read.len(), &mut name, &mut value, &mut size) };
        if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return read;
        }
        // SAFETY: names end with a NUL byte, and a value has the returned length.
        let (name, value) = unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
            (CStr::from_ptr(name).to_bytes(), value)
        };
        read.push((Bytes::copy_from_slice(name), value.map(Bytes::copy_from_slice)));
    }
}
