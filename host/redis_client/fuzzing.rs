//! Any reply of a Redis server, and the texts in it.

use std::collections::HashSet;

use arbitrary::{Result, Unstructured};
use redis::{Value, VerbatimFormat};

use super::{Config, Metrics, RedisClient};

/// Beginnings of errors that mean something to us, and one that does not.
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

/// Any reply. Nested up to `depth` levels: the parser has a limit, too.
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

/// Some replies.
pub(crate) fn replies(input: &mut Unstructured<'_>, depth: u8) -> Result<Vec<Value>> {
    (0..input.int_in_range(0..=9)?).map(|_| reply(input, depth)).collect()
}

/// A command's error, as the parser makes it.
fn error(input: &mut Unstructured<'_>) -> Result<Value> {
    let (code, said) = (input.choose(&ERRORS)?, input.arbitrary::<&str>()?);
    let line = format!("-{code} {}\r\n", said.replace(['\r', '\n'], " "));
    Ok(redis::parse_redis_value(line.as_bytes()).unwrap_or(Value::Nil))
}

/// Collects everything in a reply that is text.
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
