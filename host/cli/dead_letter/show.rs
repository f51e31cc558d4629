//! Formats a dead letter: as a row of a table, or as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cli::print;
use crate::dead_letter::{DeadLetter, LetterPart};
use crate::message::{Header, Origin, RedriveUsers};
use crate::telemetry::escape;

const HEAD: [&str; 8] = ["ID", "WHEN", "STAGE", "TRIES", "ORIGIN", "COMETS", "PLUGIN", "REASON"];
/// Rows that are buffered to determine the column widths.
const ROWS: usize = 200;
/// Maximum length of a cell, in characters: anyone may have written the letter.
const LONGEST_CELL: usize = 256;
/// Maximum width of a column.
const WIDEST: usize = 64;

/// A table that is printed in parts.
#[derive(Default)]
pub(super) struct LetterTable {
    rows: Vec<[String; HEAD.len()]>,
    widths: [usize; HEAD.len()],
    headed: bool,
}

impl LetterTable {
    pub(super) fn add(&mut self, letter: &DeadLetter) {
        if !self.headed {
            self.headed = true;
            self.rows.push(HEAD.map(str::to_owned));
        }
        self.rows.push(row(letter));
        if self.rows.len() >= ROWS {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        for row in &self.rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().min(WIDEST).max(*width);
            }
        }
        for row in self.rows.drain(..) {
            let cells = row.iter().zip(self.widths).map(|(cell, width)| format!("{cell:width$}"));
            print(cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}

/// The cells of one letter.
pub(super) fn row(letter: &DeadLetter) -> [String; HEAD.len()] {
    let origin = letter.origin.as_ref().map(Origin::to_string).unwrap_or_default();
    let when = when(letter).unwrap_or_default();
    let (id, comets) = (letter.id.to_string(), letter.comets.join(","));
    let (stage, tries) = (letter.stage.clone(), letter.attempts.to_string());
    [id, when, stage, tries, origin, comets, letter.plugin.clone(), reason(letter)].map(cell)
}

fn reason(letter: &DeadLetter) -> String {
    let reason = &letter.reason;
    match letter.missing() {
        Some(missing) => format!("{reason}; {missing}"),
        None => reason.clone(),
    }
}

/// One escaped line.
fn cell(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { escape::line(&text, LONGEST_CELL).into_owned() }
}

fn when(letter: &DeadLetter) -> Option<String> {
    crate::time::format_ms(letter.record.timestamp_ms?)
}

/// Everything about one dead letter.
pub(super) fn json(letter: &DeadLetter) -> Value {
    let left_out =
        |part| letter.left_out.iter().find(|left_out| left_out.part == part).map(|left_out| &left_out.note);
    let place = |at: &Origin| json!({ "topic": &*at.topic, "partition": at.partition, "offset": at.offset });
    json!({
        "id": letter.id.as_str(),
        "timestamp": when(letter),
        "stage": letter.stage,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "comets": letter.comets,
        "users": RedriveUsers::parse(&letter.users).map(|users| users.named).unwrap_or_default(),
        "plugin": (!letter.plugin.is_empty()).then_some(&letter.plugin),
        "origin": letter.origin.as_ref().map(place),
        "dead_letter": place(&letter.record.origin),
        "key": bytes(letter.record.key.as_deref()),
        "value": bytes(letter.record.value.as_deref()),
        "value_left_out": left_out(LetterPart::Value),
        "key_left_out": left_out(LetterPart::Key),
        "headers_left_out": left_out(LetterPart::Headers),
        "headers": letter.original_headers().map(header).collect::<Vec<_>>(),
    })
}

/// A name is text; one that is not UTF-8 is also given in `name_base64`.
fn header(header: &Header) -> Value {
    let (name, value) = (header.name_text(), bytes(header.value.as_deref()));
    if std::str::from_utf8(&header.name).is_ok() {
        return json!({ "name": name, "value": value });
    }
    json!({ "name": name, "name_base64": STANDARD.encode(&header.name), "value": value })
}

/// `{"text": ...}` for UTF-8 without control characters other than white space, otherwise `{"base64":
/// ...}`; null if absent.
fn bytes(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else { return Value::Null };
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(odd) => json!({ "text": text }),
        _ => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_text_if_they_are() {
        assert_eq!(bytes(None), Value::Null);
        assert_eq!(bytes(Some("弹幕\n".as_bytes())), json!({ "text": "弹幕\n" }));
        assert_eq!(bytes(Some(b"\x08\x01")), json!({ "base64": "CAE=" }));
        assert_eq!(bytes(Some(b"\xff")), json!({ "base64": "/w==" }));
    }
}
