//! Checks any record in librdkafka's memory: headers in its own lists, and the copy of the record.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

use super::native::Headers;
use super::record::to_native;
use crate::message::{
    HEADERS_LEFT_OUT, Header, KEY_LEFT_OUT, MESSAGE_ID, ORIGIN_TOPIC, Origin, RawHeader, RawRecord, Record,
    RecordLimits, STAGE, VALUE_LEFT_OUT,
};

/// Header names with a meaning for the gateway.
const OURS: [&str; 5] = [MESSAGE_ID, ORIGIN_TOPIC, STAGE, HEADERS_LEFT_OUT, "halley-proof"];
/// More than by default may be in a record.
const MOST_REPEATED: usize = 3_000;

/// Checks that a record is copied completely, or that headers name what is missing.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let limits = RecordLimits {
        bytes: input.int_in_range(0..=256)?,
        headers: input.int_in_range(0..=12)?,
        header_bytes: input.int_in_range(0..=1_024)?,
    };
    let (key, headers) = (input.arbitrary::<Option<&[u8]>>()?, headers(input)?);
    let value = if input.arbitrary()? { Some(input.bytes(input.len())?) } else { None };
    let list = to_native(&headers);
    let expected: Vec<Header> = headers.into_iter().map(as_read).collect();
    let copy = |limits: &RecordLimits| {
        let headers = Ok(Headers::of_list(&list).into_iter());
        let origin = Origin { topic: "push".into(), partition: 3, offset: 42 };
        RawRecord { origin, timestamp_ms: Some(7), key, value, headers }.copy(limits)
    };
    let whole = copy(&RecordLimits::NONE);
    assert_eq!((whole.key.as_deref(), whole.value.as_deref()), (key, value));
    assert_eq!(whole.headers, expected);
    assert!(!whole.trusted, "nobody has checked it");
    // A dead letter is written with what was read.
    let again = to_native(&whole.headers);
    assert!(Headers::of_list(&again).into_iter().eq(expected.iter().map(borrowed)));
    check_limits(&whole, &copy(&limits), &limits);
    Ok(())
}

/// Within the limits everything is copied; beyond them, headers name what is missing.
fn check_limits(whole: &Record, read: &Record, limits: &RecordLimits) {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let large = length(&whole.key) + length(&whole.value) > limits.bytes;
    let bytes: usize = whole.headers.iter().map(|h| h.name.len() + length(&h.value)).sum();
    let many = whole.headers.len() > limits.headers || bytes > limits.header_bytes;
    let lacks_value = large && whole.value.is_some();
    let lacks_key = large && length(&whole.key) > limits.bytes;
    if !(lacks_value || lacks_key || many) {
        assert_eq!(read, whole);
        return;
    }
    assert!(read.trusted, "it is the gateway that says what is left out");
    assert_eq!(read.value, whole.value.clone().filter(|_| !lacks_value));
    assert_eq!(read.key, whole.key.clone().filter(|_| !lacks_key));
    let notes = [(VALUE_LEFT_OUT, lacks_value), (KEY_LEFT_OUT, lacks_key), (HEADERS_LEFT_OUT, many)];
    for (name, is_left_out) in notes {
        let said = read.headers.iter().filter(|header| header.name == name).count();
        assert_eq!(said, usize::from(is_left_out), "{name}");
    }
    assert_eq!(read.message_id(), whole.message_id(), "its id is that of the whole");
    // Nothing of what the record claims is left but that it is a dead letter.
    let theirs = |header: &&Header| whole.headers.contains(*header);
    for header in read.headers.iter().filter(theirs).filter(|header| header.name.starts_with(b"halley-")) {
        assert!([ORIGIN_TOPIC, STAGE].iter().any(|name| header.name == name), "{header:?}");
    }
    let most = if many { limits.headers } else { whole.headers.len() };
    assert!(read.headers.len() <= most + notes.len() + 1, "{} headers", read.headers.len());
}

/// As librdkafka returns it: a name is a C string.
fn as_read(mut header: Header) -> Header {
    let end = header.name.iter().position(|byte| *byte == 0).unwrap_or(header.name.len());
    header.name.truncate(end);
    header
}

fn borrowed(header: &Header) -> RawHeader<'_> {
    (&header.name, header.value.as_deref())
}

/// Headers of any bytes; sometimes thousands of one.
fn headers(input: &mut Unstructured<'_>) -> Result<Vec<Header>> {
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=14)? {
        let name: Bytes = match input.int_in_range(0..=3u8)? {
            0 => Bytes::from_static(input.choose(&OURS)?.as_bytes()),
            _ => input.arbitrary::<Vec<u8>>()?.into(),
        };
        headers.push(Header { name, value: input.arbitrary::<Option<Vec<u8>>>()?.map(Bytes::from) });
    }
    if let Some(last) = headers.last().cloned()
        && input.ratio(1, 32)?
    {
        headers.resize(input.int_in_range(1..=MOST_REPEATED)?, last);
    }
    Ok(headers)
}
