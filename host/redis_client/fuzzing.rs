//! Fuzzing: arbitrary replies of a Redis server, and the texts in them.

use std::collections::HashSet;

use arbitrary::{Result, Unstructured};
use redis::{Value, VerbatimFormat};

use super::reply_meter::{RejectedReply, ReplyLimits, ReplyMeter};
use super::resp_scanner::RespScanner;
use super::{Config, Metrics, RedisClient};

/// Fragments of replies: valid ones, and some that no server writes.
const PIECES: [&str; 22] = [
    "+OK\r\n",
    ":1\r\n",
    "$-1\r\n",
    "$0\r\n\r\n",
    "$3\r\nabc\r\n",
    "$99\r\n",
    "$4294967296\r\n",
    "*0\r\n",
    "*1\r\n",
    "*3\r\n",
    "*99999999999\r\n",
    "%1\r\n",
    "~2\r\n",
    ">2\r\n",
    "|1\r\n",
    "=7\r\ntxt:abc\r\n",
    "!3\r\nERR\r\n",
    "_\r\n",
    "#t\r\n",
    "+x\n$20\r\n",
    "$-0\r\n",
    "*+1\r\n",
];

/// Known error codes, and an unknown one.
const ERRORS: [&str; 9] = [
    "WRONGTYPE",
    "NOPERM",
    "ERR",
    "LOADING",
    "MOVED",
    "NOAUTH",
    "READONLY",
    "ERR insufficient ACL permissions",
    "X",
];

/// An arbitrary reply, nested up to `depth` levels: the parser is limited as well.
pub(crate) fn reply(input: &mut Unstructured<'_>, depth: u8) -> Result<Value> {
    let kinds = if depth == 0 { 9 } else { 13 };
    Ok(match input.int_in_range(0..=kinds)? {
        0 => Value::Nil,
        1 => Value::Int(input.arbitrary()?),
        2 | 3 => Value::BulkString(input.arbitrary()?),
        4 => Value::SimpleString(input.arbitrary()?),
        5 => Value::Okay,
        6 => Value::Double(input.arbitrary()?),
        7 => Value::Boolean(input.arbitrary()?),
        8 => Value::VerbatimString { format: VerbatimFormat::Text, text: input.arbitrary()? },
        9 => error(input)?,
        10 | 11 => Value::Array(replies(input, depth - 1)?),
        12 => Value::Set(replies(input, depth - 1)?),
        _ => {
            let (names, values) = (replies(input, depth - 1)?, replies(input, depth - 1)?);
            Value::Map(names.into_iter().zip(values).collect())
        }
    })
}

/// Checks the stream of limited replies: its output does not depend on how the input is split, and
/// both limits hold.
pub(crate) fn check_stream(input: &mut Unstructured<'_>) -> Result<()> {
    let (value, most) = (input.int_in_range(0..=64)?, input.int_in_range(0..=4_096)?);
    let size = input.int_in_range(1..=64)?;
    let mut bytes = Vec::new();
    for _ in 0..input.int_in_range(0..=40u8)? {
        let other = input.ratio(1, 8)?;
        bytes.extend(if other { input.arbitrary::<&[u8]>()? } else { input.choose(&PIECES)?.as_bytes() });
    }
    let (whole, all) = through(&bytes, bytes.len().max(1), value, most);
    let (pieces, same) = through(&bytes, size, value, most);
    // Pushes are no replies, and have a bound of their own.
    let is_bounded = |through: &[u8]| through.len() <= most || bytes.contains(&b'>');
    assert!(is_bounded(&all) && is_bounded(&same), "{} of {most} bytes", all.len().max(same.len()));
    assert_eq!((&whole, &all), (&pieces, &same), "cut into pieces of {size}");
    if let (Ok(()), Ok(reply)) = (whole, redis::parse_redis_value(&all)) {
        let longest = longest_string(&reply);
        assert!(longest <= value, "a string of {longest} bytes, {value} may be");
    }
    Ok(())
}

/// The accepted bytes of an input that arrives in pieces.
fn through(
    bytes: &[u8],
    size: usize,
    value: usize,
    most: usize,
) -> (std::result::Result<(), RejectedReply>, Vec<u8>) {
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let meter = ReplyMeter::new(ReplyLimits { value, replies: most, metrics });
    let (mut scanner, mut out) = (RespScanner::default(), Vec::new());
    let read = bytes.chunks(size).try_for_each(|piece| scanner.feed(piece, &mut out, &meter));
    (read, out)
}

fn longest_string(reply: &Value) -> usize {
    let longest = |values: &[Value]| values.iter().map(longest_string).max().unwrap_or_default();
    match reply {
        Value::BulkString(bytes) => bytes.len(),
        Value::VerbatimString { text, .. } => text.len(),
        Value::Array(values) | Value::Set(values) => longest(values),
        Value::Map(pairs) => pairs
            .iter()
            .map(|(name, value)| longest_string(name).max(longest_string(value)))
            .max()
            .unwrap_or(0),
        Value::Push { data, .. } => longest(data),
        _ => 0,
    }
}

/// Some arbitrary replies.
pub(crate) fn replies(input: &mut Unstructured<'_>, depth: u8) -> Result<Vec<Value>> {
    (0..input.int_in_range(0..=9)?).map(|_| reply(input, depth)).collect()
}

/// An error reply, as the parser produces it.
fn error(input: &mut Unstructured<'_>) -> Result<Value> {
    let (code, said) = (input.choose(&ERRORS)?, input.arbitrary::<&str>()?);
    let line = format!("-{code} {}\r\n", said.replace(['\r', '\n'], " "));
    Ok(redis::parse_redis_value(line.as_bytes()).unwrap_or(Value::Nil))
}

/// Collects all texts in a reply.
pub(crate) fn texts(reply: &Value, known: &mut HashSet<String>) {
    match reply {
        Value::BulkString(bytes) => known.extend(std::str::from_utf8(bytes).ok().map(str::to_owned)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => drop(known.insert(text.clone())),
        Value::Okay => drop(known.insert("OK".to_owned())),
        Value::Int(number) => drop(known.insert(number.to_string())),
        Value::Array(inner) | Value::Set(inner) => inner.iter().for_each(|value| texts(value, known)),
        Value::Map(pairs) => pairs.iter().for_each(|(name, value)| {
            texts(name, known);
            texts(value, known);
        }),
        _ => {}
    }
}

/// A client that never connects.
pub(crate) fn client() -> RedisClient {
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    RedisClient::new(&Config::default(), metrics).expect("the default is valid")
}
