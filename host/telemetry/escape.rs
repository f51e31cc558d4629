//! Escapes foreign text for logs and terminals. Pure.
//!
//! Room ids, keys, topics, and texts from plugins and comets may contain line breaks that forge a log
//! line, escape sequences that move the cursor, or marks that change the text direction. Each output
//! escapes once, where it is written: the log formatter ([`Fields`] for text, [`json`] for JSON), and
//! `print` and `fail` of the command line. Text is unescaped until then.
//!
//! [`Fields`]: super::fields::Fields

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Maximum length of a value or line, in characters.
pub const LONGEST: usize = 1_024;

/// Maximum number of lines of a [`block`].
const MOST_LINES: usize = 200;

/// Whether a terminal or editor would interpret a character instead of showing it: controls (C0, DEL,
/// C1), direction marks, and line separators.
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A writer that escapes active characters, up to a maximum length. Call [`Escape::finish`] at the
/// end: it marks truncated text.
pub struct Escape<W> {
    out: W,
    left: usize,
    cut: usize,
}

impl<W: Write> Escape<W> {
    /// Writes to `out`, up to `longest` characters.
    pub fn new(out: W, longest: usize) -> Self {
        Self { out, left: longest, cut: 0 }
    }

    /// Appends a mark if text was truncated.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn finish(mut self) -> fmt::Result {
        if self.cut > 0 { write!(self.out, "{}", CutMarker(self.cut)) } else { Ok(()) }
    }
}

impl<W: Write> Write for Escape<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            if self.left == 0 {
                self.out.write_str(&text[plain..at])?;
                self.cut += text[at..].chars().count();
                return Ok(());
            }
            self.left -= 1;
            if is_active(c) {
                self.out.write_str(&text[plain..at])?;
                write!(self.out, "{}", c.escape_default())?;
                plain = at + c.len_utf8();
            }
        }
        self.out.write_str(&text[plain..])
    }
}

/// The mark of truncated text.
#[derive(derive_more::Display)]
#[display("…[{_0} more]")]
struct CutMarker(usize);

/// Truncates a text without escaping it: for text that is assembled before it is written.
pub fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}{}", &text[..at], CutMarker(text[at..].chars().count()))),
    }
}

/// One escaped line of at most `longest` characters.
pub fn line(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest && !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len().min(longest) + 32);
    let mut escape = Escape::new(&mut escaped, longest);
    escape.write_str(text).and_then(|()| escape.finish()).expect("a string takes it");
    Cow::Owned(escaped)
}

/// Several escaped lines, each of at most [`LONGEST`] characters. All but the first are indented, so
/// that none looks like the start of another message.
pub fn block(text: &str) -> String {
    let mut lines = text.lines();
    let mut block = line(lines.next().unwrap_or_default(), LONGEST).into_owned();
    for next in lines.by_ref().take(MOST_LINES - 1) {
        block.push_str("\n  ");
        block.push_str(&line(next, LONGEST));
    }
    match lines.count() {
        0 => {}
        left => block.push_str(&format!("\n  …[{left} more lines]")),
    }
    block
}

/// JSON with active characters escaped, and strings of at most `longest` characters. Equivalent to
/// the input except for truncated strings.
pub fn json(text: &str, longest: usize) -> Cow<'_, str> {
    // Characters that JSON allows unescaped and a terminal interprets: DEL, and some beyond ASCII.
    let active = |c: char| !c.is_ascii() && is_active(c) || c == '\u{7f}';
    if text.len() <= longest && !text.contains(active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    // Number of characters in the current string; `None` outside of strings.
    let mut inside: Option<usize> = None;
    while let Some(c) = chars.next() {
        let Some(length) = &mut inside else {
            out.push(c);
            inside = (c == '"').then_some(0);
            continue;
        };
        if c == '"' {
            if *length > longest {
                out.push_str(&CutMarker(*length - longest).to_string());
            }
            out.push(c);
            inside = None;
            continue;
        }
        *length += 1;
        let keep = *length <= longest;
        if c == '\\' {
            let kind = chars.next();
            let digits = if kind == Some('u') { 4 } else { 0 };
            let escape = std::iter::once(c).chain(kind).chain(chars.by_ref().take(digits));
            // Consumed in any case: it is one character of the string.
            let escape: String = escape.collect();
            out.push_str(if keep { &escape } else { "" });
        } else if keep && active(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else if keep {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Arbitrary text with many active characters.
    fn texts() -> impl Strategy<Value = String> {
        let odd =
            "[\\x00-\\x1f\\x7f-\\u{9f}\\u{200e}\\u{2028}-\\u{202e}\\u{2066}-\\u{2069}\"\\\\a-c弹]{0,40}";
        prop_oneof![any::<String>(), proptest::string::string_regex(odd).expect("a pattern")]
    }

    #[test]
    fn a_forged_line_stays_in_its_line() {
        let room = "lobby\n2026-01-01T00:00:00Z ERROR all is lost\x1b[2J\0\u{9b}1m\u{202e}\u{2028}";
        let shown = r"lobby\n2026-01-01T00:00:00Z ERROR all is lost\u{1b}[2J\u{0}\u{9b}1m\u{202e}\u{2028}";
        assert_eq!(line(room, LONGEST), shown);
        assert_eq!(line("弹幕 is text", LONGEST), "弹幕 is text");
        assert_eq!(line("0123456789", 4), "0123…[6 more]");
        assert_eq!((&*cut("弹幕", 2), &*cut("弹幕\n", 2)), ("弹幕", "弹幕…[1 more]"));
        assert_eq!(block("one\ntwo\r\nhalley: three\x07"), "one\n  two\n  halley: three\\u{7}");
        assert!(block(&"x\n".repeat(1_000)).ends_with("\n  x\n  …[800 more lines]"));
        assert_eq!(json("{\"a\":\"b\u{7f}\u{202e}\"}", 9), "{\"a\":\"b\\u007f\\u202e\"}");
        assert_eq!(json(r#"{"a":"\u001b\"345678"}"#, 4), r#"{"a":"\u001b\"34…[4 more]"}"#);
    }

    proptest! {
        #[test]
        fn no_active_character_is_left(text in texts(), longest in 0..60_usize) {
            let shown = line(&text, longest);
            prop_assert!(!shown.contains(is_active), "{:?}", shown);
            // An escape has up to ten characters.
            prop_assert!(shown.chars().count() <= 10 * longest + 40, "{:?}", shown);
            if !text.contains(is_active) && text.chars().count() <= longest {
                prop_assert_eq!(&*shown, &text);
            }
            let shown = block(&text);
            prop_assert!(!shown.contains(|c| is_active(c) && c != '\n'), "{:?}", shown);
            prop_assert!(shown.lines().skip(1).all(|line| line.starts_with("  ")), "{:?}", shown);
        }

        #[test]
        fn escaped_json_is_equivalent(texts in proptest::collection::vec(texts(), 0..4)) {
            let value = serde_json::json!({ "all": texts, "n": 1 });
            let shown = json(&value.to_string(), usize::MAX).into_owned();
            prop_assert!(!shown.contains(is_active), "{:?}", shown);
            let read: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            prop_assert_eq!(read, value);
        }

        #[test]
        fn json_is_cut_and_stays_json(texts in proptest::collection::vec(texts(), 0..4), longest in 3..20_usize) {
            let value = serde_json::json!({ "all": texts });
            let shown = json(&value.to_string(), longest).into_owned();
            prop_assert!(!shown.contains(is_active), "{:?}", shown);
            let read: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            for (read, text) in read["all"].as_array().into_iter().flatten().zip(&texts) {
                let kept: String = text.chars().take(longest).collect();
                let read = read.as_str().unwrap_or_default();
                prop_assert!(read.starts_with(&kept), "{:?} of {:?}", read, text);
                prop_assert!(read.chars().count() <= longest + 20);
            }
        }
    }
}
