//! Fuzzing: how any dead letter is printed.

use serde_json::Value;

use super::show::{json, row};
use crate::dead_letter::DeadLetter;
use crate::telemetry::escape::{self, is_active};

/// Maximum length of a cell, in characters; an escape has up to ten.
const LONGEST_CELL: usize = 3_000;

/// Checks that no dead letter can control a terminal, and that its JSON is lossless.
pub(crate) fn check(letter: &DeadLetter) {
    for cell in row(letter) {
        assert!(!cell.contains(is_active) && !cell.is_empty(), "{cell:?}");
        assert!(cell.chars().count() <= LONGEST_CELL, "{} characters", cell.chars().count());
    }
    let value = json(letter);
    let printed = escape::json(&value.to_string(), usize::MAX).into_owned();
    assert!(!printed.contains(is_active), "{printed:?}");
    assert_eq!(serde_json::from_str::<Value>(&printed).ok(), Some(value));
}
