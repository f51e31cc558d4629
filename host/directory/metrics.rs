//! Metrics of the directory.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Metrics of the directory.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections found per look-up of a room.
    pub(super) room_connections: Histogram,
    /// Ids without a connection.
    pub(super) stale_members: Counter,
    /// Keys of another type than comets write.
    pub(super) wrong_type_keys: Counter,
    /// Rooms that could not be read.
    pub(super) unreadable_rooms: Counter,
}

impl Metrics {
    /// Creates and registers the metrics.
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
            "Room members and user keys without a connection, which were skipped",
            metrics.stale_members.clone(),
        );
        registry.register(
            "halley_directory_wrong_type_keys",
            "Directory keys of another type than comets write, which were skipped",
            metrics.wrong_type_keys.clone(),
        );
        registry.register(
            "halley_directory_unreadable_rooms",
            "Rooms that could not be read: too large, or timed out while Redis was otherwise responsive",
            metrics.unreadable_rooms.clone(),
        );
        metrics
    }
}
