//! What the directory counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The directory's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections found in each room that was looked up.
    pub(super) room_connections: Histogram,
    /// Ids that lead to no connection.
    pub(super) stale_members: Counter,
    /// Keys that hold another type of value than comets write.
    pub(super) wrong_type_keys: Counter,
    /// Attempts to read a room that were given up.
    pub(super) unreadable_rooms: Counter,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        // 1, 2, 5 and so on to 100,000.
        let buckets = (0..=5).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(power))).take(16);
        let metrics = Self {
            room_connections: Histogram::new(buckets),
            stale_members: Counter::default(),
            wrong_type_keys: Counter::default(),
            unreadable_rooms: Counter::default(),
        };
        registry.register(
            "room_connection_count",
            "Connections found in a room, for each room that was looked up",
            metrics.room_connections.clone(),
        );
        registry.register(
            "halley_directory_stale_members",
            "Room members and user keys that led to no connection and were skipped",
            metrics.stale_members.clone(),
        );
        registry.register(
            "halley_directory_wrong_type_keys",
            "Directory keys that held another type of value than comets write, and were skipped",
            metrics.wrong_type_keys.clone(),
        );
        registry.register(
            "halley_directory_unreadable_rooms",
            "Rooms that were given up: too large, or not read in time while Redis answered otherwise",
            metrics.unreadable_rooms.clone(),
        );
        metrics
    }
}
