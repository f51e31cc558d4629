//! Parses replies: texts, absent values, refusals.
//!
//! Names of rooms, users, connections and comets are UTF-8 in Halley. Other bytes are reported as
//! such, so that callers can skip and count them.

use redis::{ServerError, ServerErrorKind, Value};

use super::error::{ServerFailure, ServerFailureKind};

/// The result of a partial call: a reply for each completed command, and the problem of the others.
#[derive(Debug)]
pub(super) struct PartialReplies {
    pub(super) replies: Vec<Option<Value>>,
    pub(super) problem: Option<ServerFailure>,
}

/// A string in a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextReply {
    /// Nil, or not a string.
    Absent,
    /// UTF-8, possibly empty.
    Text(String),
    /// Invalid UTF-8.
    NotUtf8,
}

impl TextReply {
    /// The text, unless it is absent or empty.
    pub fn filled(self) -> Option<String> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            Self::Text(_) | Self::Absent | Self::NotUtf8 => None,
        }
    }
}

/// Parses a reply as a string.
pub fn text(value: Value) -> TextReply {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_or(TextReply::NotUtf8, TextReply::Text),
        Value::SimpleString(text) => TextReply::Text(text),
        Value::Okay => TextReply::Text("OK".to_owned()),
        Value::Int(number) => TextReply::Text(number.to_string()),
        _ => TextReply::Absent,
    }
}

/// Parses a reply as a list; anything else is an empty list.
pub fn elements(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        _ => Vec::new(),
    }
}

/// Why the server refused a command.
#[derive(Debug, Clone, PartialEq, Eq, derive_more::Display)]
pub enum Refusal {
    /// The key holds a value of another type.
    #[display("WRONGTYPE")]
    WrongType,
    /// The user's ACL denies it.
    Denied(String),
    /// Any other fault of the command: unknown to this version, bad syntax.
    Other(String),
}

/// What the server said if it does not allow a command or cannot run it, whatever the key holds.
pub fn denial(reply: &Value) -> Option<String> {
    match refusal(reply)? {
        Refusal::Denied(said) | Refusal::Other(said) => Some(said),
        Refusal::WrongType => None,
    }
}

/// The refusal in a reply, if it is one.
pub fn refusal(value: &Value) -> Option<Refusal> {
    let Value::ServerError(error) = value else { return None };
    let message = message(error);
    Some(match error.code() {
        // Too large to be valid.
        "WRONGTYPE" | TOO_LARGE => Refusal::WrongType,
        "NOPERM" => Refusal::Denied(message),
        _ if message.contains("insufficient ACL permissions") => Refusal::Denied(message),
        _ => Refusal::Other(message),
    })
}

/// Whether the user's ACL forbade something among these.
pub(super) fn is_any_denied<'a>(replies: impl IntoIterator<Item = &'a Value>) -> bool {
    replies.into_iter().any(|reply| matches!(refusal(reply), Some(Refusal::Denied(_))))
}

/// The error code of a substitute for an oversized reply.
const TOO_LARGE: &str = "TOOLARGE";

/// The substitute for an oversized reply.
pub(super) fn too_large(message: &str) -> Value {
    let printable = |c: &char| !c.is_control();
    let line: String = message.chars().filter(printable).collect();
    redis::parse_redis_value(format!("-{TOO_LARGE} {line}\r\n").as_bytes()).unwrap_or_default()
}

/// The size of the oversized reply that this one replaces, as text; `None` for any other reply.
pub fn excess(value: &Value) -> Option<String> {
    let Value::ServerError(error) = value else { return None };
    (error.code() == TOO_LARGE).then(|| error.details().unwrap_or_default().to_owned())
}

/// Whether this is the substitute for an oversized reply.
pub fn is_too_large(value: &Value) -> bool {
    excess(value).is_some()
}

/// The problem in a reply, if the server as a whole cannot serve now.
pub(crate) fn failure(value: &Value) -> Option<ServerFailure> {
    let Value::ServerError(error) = value else { return None };
    let failure = match error.code() {
        "NOAUTH" | "WRONGPASS" => ServerFailureKind::NotLetIn,
        "OOM" => ServerFailureKind::OutOfMemory,
        "MISCONF" => ServerFailureKind::CannotSave,
        "NOREPLICAS" => ServerFailureKind::TooFewReplicas,
        "BUSY" | "UNBLOCKED" => ServerFailureKind::NotReady,
        _ => match error.kind()? {
            ServerErrorKind::BusyLoading | ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown => {
                ServerFailureKind::NotReady
            }
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::ClusterDown => ServerFailureKind::IsCluster,
            _ => return None,
        },
    };
    Some(ServerFailure::new(failure, message(error)))
}

/// The error message of the server.
pub(crate) fn message(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble_of(line: &str) -> Option<ServerFailureKind> {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("a reply");
        failure(&reply).map(|problem| {
            assert_eq!(&*problem.message, line);
            problem.failure
        })
    }

    #[test]
    fn server_failures_are_not_refusals() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down",
            "BUSY Redis is busy running a script.",
        ] {
            assert_eq!(trouble_of(line), Some(ServerFailureKind::NotReady), "{line}");
        }
        for (line, failure) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", ServerFailureKind::OutOfMemory),
            ("MISCONF Redis is configured to save RDB snapshots, but", ServerFailureKind::CannotSave),
            ("NOREPLICAS Not enough good replicas to write.", ServerFailureKind::TooFewReplicas),
        ] {
            assert_eq!(trouble_of(line), Some(failure), "{line}");
        }
        for line in [
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN The cluster is down",
            "CROSSSLOT Keys in request don't hash to the same slot",
        ] {
            assert_eq!(trouble_of(line), Some(ServerFailureKind::IsCluster), "{line}");
        }
        assert_eq!(trouble_of("NOAUTH Authentication required."), Some(ServerFailureKind::NotLetIn));
        assert_eq!(trouble_of("WRONGTYPE Operation against a key"), None);
        assert_eq!(trouble_of("ERR unknown command"), None);
    }
}
