//! The archive: messages for absent users, and of rooms that have a history, in MySQL or MariaDB, for longer
//! than Redis keeps them.
//!
//! ```text
//!   gateway: message stored in its room's history -> archive topic -> delivered
//!   gateway: message stored in inboxes -> archive topic (one record for many users) -> settled
//!   archiver: archive topic -> rows of one transaction -> commit -> offsets committed
//! ```
//!
//! [`ArchiveTopic`] is the gateway's side. [`Archiver`] consumes the topic, in a gateway or in a
//! process of its own; several share the partitions. [`Archive`] reads and erases; [`ArchivedMessages`]
//! continues the pages of inboxes and histories. [`init`] creates the tables.
//!
//! Promises: a message is settled only after the archive topic has it, and an archive record only
//! after its rows are committed or are dead letters. A message is in the archive once per user and room,
//! however often it is delivered. The module does not know how a policy decides.

mod archiver;
mod config;
mod database;
mod day_partitions;
mod insert;
mod metrics;
mod older;
mod read;
mod record;
mod row;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod topic;

pub use archiver::Archiver;
pub use config::{Config, InvalidUrl};
pub use database::DatabaseError;
pub use metrics::{Metrics, ReadMetrics, TopicMetrics};
pub use older::ArchivedMessages;
pub use read::Archive;
pub use record::{ArchiveRecipient, refusal, room_refusal};
pub use row::{ArchivedMessage, Position};
pub use schema::{init, probe, statements};
pub use topic::ArchiveTopic;
