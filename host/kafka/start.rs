//! `[kafka] start`: where a consumer group without committed offsets starts.

use std::str::FromStr;
use std::time::SystemTime;

use crate::schema;
use crate::time::parse_date;

/// Where a new group starts. Applies once per topic: partitions that are added later start at their
/// first record (KIP-842), and so does a recreated topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, derive_more::Display)]
pub enum StartFrom {
    /// At the oldest available record.
    #[default]
    #[display("oldest")]
    Oldest,
    /// At the first record after the group's first assignment.
    #[display("newest")]
    Newest,
    /// At the first record of this time or later.
    #[display("{}", humantime::format_rfc3339(*_0))]
    At(SystemTime),
}

/// An invalid value of `start`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a start; use `oldest`, `newest`, or a UTC time such as `2026-01-31T12:00:00Z` or `2026-01-31`"
)]
pub struct InvalidStart(String);

impl FromStr for StartFrom {
    type Err = InvalidStart;

    fn from_str(text: &str) -> Result<Self, InvalidStart> {
        match text {
            "oldest" => Ok(Self::Oldest),
            "newest" => Ok(Self::Newest),
            time => parse_date(time).map(Self::At).ok_or_else(|| InvalidStart(text.to_owned())),
        }
    }
}

schema::as_text!(StartFrom);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_start_is_a_word_or_a_time() {
        let at = |seconds| StartFrom::At(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!("oldest".parse(), Ok(StartFrom::Oldest));
        assert_eq!("newest".parse(), Ok(StartFrom::Newest));
        assert_eq!("1970-01-01T00:01:00Z".parse(), Ok(at(60)));
        assert_eq!(at(60).to_string(), "1970-01-01T00:01:00Z");
        assert_eq!("1970-01-02".parse(), Ok(at(86_400)));
        for wrong in ["latest", "earliest", "", "2026-01", "1h"] {
            let error = wrong.parse::<StartFrom>().expect_err("is not a start");
            assert!(error.to_string().contains("`oldest`"), "{error}");
        }
    }
}
