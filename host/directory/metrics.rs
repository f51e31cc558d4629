//! Metrics of the directory.

use crate::telemetry::{Counter, Histogram, metrics};

metrics! {
    /// Metrics of the directory.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Connections found in a room, for each room that was looked up.
        pub(super) room_connections: Histogram = "room_connection_count" in Histogram::new(sizes());
        /// Room members and user keys without a connection, which were skipped.
        pub(super) stale_members: Counter = "halley_directory_stale_members";
        /// Directory keys of another type than comets write, which were skipped.
        pub(super) wrong_type_keys: Counter = "halley_directory_wrong_type_keys";
        /// Connections whose details were fetched because they are new in a room of which the others are known.
        pub(super) newcomers: Counter = "halley_directory_newcomers";
        /// Rooms that could not be read: too large, or timed out while Redis was otherwise responsive.
        pub(super) unreadable_rooms: Counter = "halley_directory_unreadable_rooms";
    }
}

/// 1, 2, 5 and so on to 100,000.
fn sizes() -> impl Iterator<Item = f64> {
    (0..=5).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(power))).take(16)
}
