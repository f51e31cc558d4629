//! What commands write: standard output has their answer, standard error what went wrong. The one
//! place where that is escaped; see [`escape`].

use std::io::{ErrorKind, Write as _};
use std::sync::OnceLock;

use crate::telemetry::escape;

/// The most characters of a line of an answer.
const LONGEST_LINE: usize = 4 * escape::LONGEST;

/// Why standard output did not take everything: the first reason.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Prints one line to standard output, which is what a command's answer is for. Line breaks in it
/// are escaped: [`print_lines`] is for several. A command whose answer could not be written finishes
/// what it does, and then fails.
pub(super) fn print(line: &str) {
    print_styled(&escape::line(line, LONGEST_LINE));
}

/// Prints lines, each as [`print`] does.
pub(super) fn print_lines<L: AsRef<str>>(lines: impl IntoIterator<Item = L>) {
    lines.into_iter().for_each(|line| print(line.as_ref()));
}

/// Prints JSON, of one line or several. Nothing of it is cut: it is for machines.
pub(super) fn print_json(json: &str) {
    print_styled(&escape::json(json, usize::MAX));
}

/// Prints text as it is, with the colours in it. What is not the command's own has to be escaped
/// already.
pub(super) fn print_styled(text: &str) {
    printed(writeln!(std::io::stdout(), "{text}"));
}

/// A closed pipe (`halley explain | head`) is no error: the reader has had enough.
pub(super) fn printed(result: std::io::Result<()>) {
    if let Err(error) = result
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = UNPRINTED.set(error.to_string());
    }
}

/// Writes out what is still buffered; why standard output did not take everything, if so.
pub(super) fn finish() -> Option<&'static str> {
    printed(std::io::stdout().flush());
    UNPRINTED.get().map(String::as_str)
}

/// Prints an error to standard error. Its further lines are indented.
pub(super) fn fail(text: &str) {
    drop(writeln!(std::io::stderr(), "halley: {}", escape::block(text)));
}
