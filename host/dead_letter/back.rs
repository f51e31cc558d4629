//! What is written to a letter's topic of origin. Pure.

use crate::dead_letter::{DeadLetter, ORIGIN_TIMESTAMP};
use crate::kafka::{Fit, NotWritten, Outgoing, Refusal};
use crate::message::{REDRIVE_COMETS, REDRIVE_USERS};

/// The letter as the record that it was, for a topic with so many partitions. It says which comets
/// it is for, those that did not take it, or which users, those whom it was not kept for; unless
/// `all` are to have it.
pub(super) fn back(letter: &DeadLetter, partitions: i32, all: bool) -> Outgoing<'_> {
    let origin = letter.origin.as_ref().map(|origin| origin.partition);
    let mut record = Outgoing {
        headers: letter.restored_headers(),
        // Where it was: producers of other languages spread keys differently.
        partition: origin.filter(|partition| (0..partitions).contains(partition)),
        ..Outgoing::copy_of(&letter.record)
    };
    if all {
        return record;
    }
    if !letter.users.is_empty() {
        record.add_header(REDRIVE_USERS, letter.users.clone());
    } else if !letter.comets.is_empty() && !letter.more_comets {
        record.add_header(REDRIVE_COMETS, letter.comets.join(","));
    }
    record
}

/// Gives a record that its topic finds too old, or too new, the time of now, and its own in a
/// header. Everything else that a topic refuses stays refused.
pub(super) struct Restamp;

impl Fit for Restamp {
    fn fit<'a>(&self, mut record: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
        if error.refusal != Some(Refusal::Timestamp) {
            return None;
        }
        let time = record.timestamp_ms.take()?;
        record.add_header(ORIGIN_TIMESTAMP, time.to_string());
        Some(record)
    }
}
