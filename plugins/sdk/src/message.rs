//! Accessors of a message, in addition to its fields.

use std::borrow::Cow;
use std::time::Duration;

use crate::Message;

impl Message {
    /// The body as text; bytes that are not UTF-8 become `U+FFFD`.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name).map(|header| header.value.as_slice())
    }

    /// The value of the first header of this name, if it is UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The record's timestamp as the time since 1970-01-01 UTC, comparable with [`now`](crate::now);
    /// `None` if it has none.
    pub fn timestamp(&self) -> Option<Duration> {
        let milliseconds = u64::try_from(self.timestamp_ms).ok().filter(|ms| *ms > 0);
        milliseconds.map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::testing::room;

    #[test]
    fn headers_are_found_by_name() {
        let message = room("r").header("a", "1").header("a", "2").header("b", [0xff]).build();
        assert_eq!(message.header("a"), Some(&b"1"[..]));
        assert_eq!(message.header_text("a"), Some("1"));
        assert_eq!((message.header_text("b"), message.header("c")), (None, None));
    }

    #[test]
    fn a_body_that_is_not_text_is_no_error() {
        assert_eq!(room("r").body([b'a', 0xff]).build().text(), "a\u{fffd}");
    }

    #[test]
    fn a_missing_timestamp_is_none() {
        assert_eq!(room("r").timestamp_ms(0).build().timestamp(), None);
        assert_eq!(room("r").timestamp_ms(5).build().timestamp(), Some(Duration::from_millis(5)));
    }
}
