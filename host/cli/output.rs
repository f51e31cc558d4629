//! Output of the commands: answers go to standard output, errors to standard error. The only place
//! that escapes them; see [`escape`].

use std::io::{ErrorKind, Write as _};
use std::sync::OnceLock;

use crate::telemetry::escape;

/// Maximum length of a line, in characters.
const LONGEST_LINE: usize = 4 * escape::LONGEST;

/// The first error of writing to standard output.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Prints one line of a command's answer to standard output. Line breaks in it are escaped; use
/// [`print_lines`] for several lines. If the answer cannot be written, the command completes and then
/// fails.
pub(super) fn print(line: &str) {
    print_styled(&escape::line(line, LONGEST_LINE));
}

/// Prints lines, each as [`print`] does.
pub(super) fn print_lines<L: AsRef<str>>(lines: impl IntoIterator<Item = L>) {
    lines.into_iter().for_each(|line| print(line.as_ref()));
}

/// Prints JSON of one or more lines. Nothing is cut: it is for machines.
pub(super) fn print_json(json: &str) {
    print_styled(&escape::json(json, usize::MAX));
}

/// Prints text as it is, with colours. Foreign text in it has to be escaped already.
pub(super) fn print_styled(text: &str) {
    printed(writeln!(std::io::stdout(), "{text}"));
}

/// A closed pipe (`halley explain | head`) is not an error: the reader has had enough.
pub(super) fn printed(result: std::io::Result<()>) {
    if let Err(error) = result
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = UNPRINTED.set(error.to_string());
    }
}

/// Flushes standard output; returns the first error, if any.
pub(super) fn finish() -> Option<&'static str> {
    printed(std::io::stdout().flush());
    UNPRINTED.get().map(String::as_str)
}

/// Prints an error to standard error. Further lines are indented.
pub(super) fn fail(text: &str) {
    drop(writeln!(std::io::stderr(), "halley: {}", escape::block(text)));
}
