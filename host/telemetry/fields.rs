//! Formats the fields of text log lines: like tracing's own formatter, with every value escaped and
//! truncated. Costs one pass over the text of the fields.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use super::escape::{Escape, LONGEST};

/// Writes `name=value`, and the message without its name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct FieldVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl FieldVisitor<'_> {
    fn write(&mut self, field: &Field, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let name = field.name().trim_start_matches("r#");
        match name {
            "message" => {}
            // Italic and dimmed, as in tracing.
            _ if self.writer.has_ansi_escapes() => {
                write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            }
            _ => write!(self.writer, "{name}=")?,
        }
        let mut escape = Escape::new(&mut self.writer, LONGEST);
        write!(escape, "{value:?}")?;
        escape.finish()
    }
}

impl Visit for FieldVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::io::Write;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::escape::is_active;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The text that is logged.
    fn logged(log: impl FnOnce()) -> String {
        let out = Captured::default();
        let writer = out.clone();
        let subscriber = tracing_subscriber::fmt().fmt_fields(Fields).with_ansi(false).without_time();
        let subscriber = subscriber.with_target(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = out.0.lock().clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn fields_look_like_tracings() {
        let (room, n) = ("lobby", 7);
        let line = logged(|| tracing::info!(%room, n, text = room, list = ?["a\n"], r#type = true, "a line"));
        assert_eq!(line, " INFO a line room=lobby n=7 text=\"lobby\" list=[\"a\\n\"] type=true\n");
    }

    proptest! {
        #[test]
        fn whatever_is_logged_is_one_line(text in any::<String>(), more in "[\\x00-\\x1f\\x7f-\\u{9f}]{0,9}") {
            let all = format!("{text}{more}");
            let line = logged(|| tracing::warn!(room = %all, text = all, debug = ?all, "{all}"));
            let line = line.strip_suffix('\n').expect("our own line break");
            prop_assert!(!line.contains(is_active), "{:?}", line);
        }
    }

    #[test]
    fn a_long_value_is_cut() {
        let long = "x".repeat(100_000);
        let line = logged(|| tracing::warn!(room = %long, "{long}"));
        assert!(line.len() < 2_200 && line.contains("…[98976 more]"), "{line}");
    }
}
