//! The tables of messages, and how their columns are called.

use crate::inbox::Owner;

/// A table of messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// What it keeps, in `halley_dropped`.
    pub(super) kept: &'static str,
    /// The column of the user or room.
    pub(super) owner: &'static str,
    /// The columns of an entry's place, by which pages are ordered, and their index.
    pub(super) place: [&'static str; 2],
    pub(super) order: &'static str,
}

/// Messages of inboxes.
pub(super) const INBOX: Table = Table {
    name: "halley_inbox",
    kept: "inbox",
    owner: "user",
    place: ["inbox_ms", "inbox_number"],
    order: "inbox_order",
};

/// Messages of the histories of rooms.
pub(super) const HISTORY: Table = Table {
    name: "halley_history",
    kept: "history",
    owner: "room",
    place: ["history_ms", "history_number"],
    order: "history_order",
};

/// All of them.
pub(super) const TABLES: [Table; 2] = [INBOX, HISTORY];

impl Table {
    /// The table with the messages of this owner, and the owner's id.
    pub(super) fn of(owner: Owner<'_>) -> (Self, &[u8]) {
        match owner {
            Owner::User(user) => (INBOX, user.as_str().as_bytes()),
            Owner::Room(room) => (HISTORY, room.as_str().as_bytes()),
        }
    }
}
