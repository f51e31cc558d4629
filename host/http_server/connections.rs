//! The open connections: their limit, and which one is closed for a new one.
//!
//! Existing connections do not lock out a new one. The connection that has waited longest for its
//! client is closed; if there is none, the one whose read has been handled longest. Candidates are
//! the connections of the same client if it is at its limit, otherwise those of the client that holds
//! most. A write is never interrupted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::http_server::activity::Activity;
use crate::http_server::peer::{Peer, PeerKey};
use crate::http_server::refusals::{RefusalReason, Refusals};

/// The open connections of a listener, or of several listeners that share a limit.
#[derive(Clone)]
pub(crate) struct Connections {
    table: Arc<Mutex<ConnectionTable>>,
    most: usize,
    most_each: usize,
    refusals: Refusals,
}

#[derive(Default)]
struct ConnectionTable {
    next: u64,
    open: HashMap<u64, OpenConnection>,
}

struct OpenConnection {
    peer: Peer,
    activity: Arc<Activity>,
    close: CancellationToken,
}

/// A slot for one connection, released on drop.
pub(crate) struct ConnectionSlot {
    table: Arc<Mutex<ConnectionTable>>,
    id: u64,
    /// Cancelled when the connection has to be closed for another one.
    pub(crate) close: CancellationToken,
}

impl Connections {
    /// At most `most` connections; one client holds at most a quarter of them.
    pub(crate) fn new(most: usize, refusals: Refusals) -> Self {
        Self { table: Arc::default(), most, most_each: (most / 4).max(2), refusals }
    }

    /// A slot for a new connection. `None` if all connections are writing.
    pub(crate) fn open(&self, peer: Peer, activity: &Arc<Activity>) -> Option<ConnectionSlot> {
        let mut table = self.table.lock();
        let (key, mut held) = (peer.key(), HashMap::<PeerKey, usize>::new());
        table.open.values().for_each(|open| *held.entry(open.peer.key()).or_default() += 1);
        let victim = if held.get(&key).is_some_and(|held| *held >= self.most_each) {
            table.eviction_candidate(|open| (open.peer.key() == key).then_some(0))
        } else if table.open.len() >= self.most {
            table.eviction_candidate(|open| held.get(&open.peer.key()).copied())
        } else {
            return Some(table.insert(peer, activity, &self.table));
        };
        let Some(victim) = victim else {
            let what = || format!("connection refused: all {} connections are writing", table.open.len());
            self.refusals.count(RefusalReason::Connections, Some(peer), what);
            return None;
        };
        self.evict(&mut table, victim, "was closed for a new connection");
        Some(table.insert(peer, activity, &self.table))
    }

    /// Closes the connection that has waited longest for its client. Returns whether there was one.
    pub(crate) fn close_longest_waiting(&self) -> bool {
        let mut table = self.table.lock();
        let victim = table.eviction_candidate(|_| Some(0));
        victim.is_some_and(|victim| self.evict(&mut table, victim, "was closed for a new connection"))
    }

    /// Closes the connection whose response has been unread for longest, if for at least `at_least`.
    /// Returns whether there was one.
    pub(crate) fn close_slowest_reader(&self, at_least: Duration) -> bool {
        let mut table = self.table.lock();
        let slow = table.open.iter().filter_map(|(id, open)| Some((open.activity.unread_since()?, *id)));
        let slowest = slow.min().filter(|(since, _)| since.elapsed() >= at_least);
        slowest.is_some_and(|(_, victim)| self.evict(&mut table, victim, "did not read its response"))
    }

    fn evict(&self, table: &mut ConnectionTable, victim: u64, why: &str) -> bool {
        let Some(open) = table.open.remove(&victim) else { return false };
        open.close.cancel();
        self.refusals
            .count(RefusalReason::Evicted, Some(open.peer), || format!("connection closed: it {why}"));
        true
    }
}

impl ConnectionTable {
    fn insert(&mut self, peer: Peer, activity: &Arc<Activity>, table: &Arc<Mutex<Self>>) -> ConnectionSlot {
        let (id, close) = (self.next, CancellationToken::new());
        self.next += 1;
        self.open.insert(id, OpenConnection { peer, activity: Arc::clone(activity), close: close.clone() });
        ConnectionSlot { table: Arc::clone(table), id, close }
    }

    /// The most expendable connection among those with the highest rank.
    fn eviction_candidate(&self, rank: impl Fn(&OpenConnection) -> Option<usize>) -> Option<u64> {
        let eviction_class = self.open.iter().filter_map(|(id, open)| {
            Some((std::cmp::Reverse(rank(open)?), open.activity.eviction_class()?, *id))
        });
        eviction_class.min().map(|(_, _, id)| id)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.table.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
impl Connections {
    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.table.lock().open.len()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::http_server::activity::TIMEOUTS;

    struct Client {
        slot: Option<ConnectionSlot>,
        activity: Arc<Activity>,
    }

    impl Client {
        fn connect(connections: &Connections, address: u32) -> Self {
            let activity = Arc::new(Activity::new(TIMEOUTS));
            let ip = std::net::Ipv4Addr::from(address);
            Self { slot: connections.open(Peer::Tcp((ip, 1).into()), &activity), activity }
        }

        fn is_open(&self) -> bool {
            self.slot.as_ref().is_some_and(|slot| !slot.close.is_cancelled())
        }
    }

    fn connections(most: usize) -> Connections {
        Connections::new(most, Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin"))
    }

    fn states(clients: &[Client]) -> Vec<bool> {
        clients.iter().map(Client::is_open).collect()
    }

    #[test]
    fn a_client_at_its_limit_evicts_only_its_own_connections() {
        let connections = connections(16);
        let other = Client::connect(&connections, 1);
        let mut greedy: Vec<_> = (0..4).map(|_| Client::connect(&connections, 2)).collect();
        greedy[0].activity.request_received();
        greedy.extend((0..2).map(|_| Client::connect(&connections, 2)));
        assert!(other.is_open());
        assert_eq!(states(&greedy), [true, false, false, true, true, true], "the one that is served stays");
        assert_eq!(connections.table.lock().open.len(), 5);
    }

    #[test]
    fn at_the_limit_the_largest_client_is_evicted() {
        let connections = connections(8);
        let first = Client::connect(&connections, 1);
        let pairs: Vec<_> = (0..7).map(|n| Client::connect(&connections, 10 + n / 2)).collect();
        let new = Client::connect(&connections, 2);
        assert!(first.is_open() && new.is_open());
        assert_eq!(states(&pairs), [false, true, true, true, true, true, true]);
    }

    #[test]
    fn reads_are_interrupted_last_and_writes_never() {
        let connections = connections(8);
        let mut clients: Vec<_> = (0..8).map(|n| Client::connect(&connections, n)).collect();
        clients.iter().for_each(|client| client.activity.request_received());
        clients[1..].iter().for_each(|client| client.activity.writes());
        let read = Client::connect(&connections, 98);
        assert_eq!(states(&clients), [false, true, true, true, true, true, true, true]);
        read.activity.request_received();
        read.activity.writes();
        assert!(!Client::connect(&connections, 99).is_open());
        clients.pop();
        assert!(Client::connect(&connections, 99).is_open());
        assert_eq!(connections.table.lock().open.len(), 7);
    }

    #[test]
    fn the_slowest_reader_is_found() {
        let connections = connections(8);
        let clients: Vec<_> = (0..3).map(|n| Client::connect(&connections, n)).collect();
        assert!(!connections.close_slowest_reader(Duration::ZERO), "no client has a response to read");
        clients[1].activity.response_ready();
        clients[0].activity.response_ready();
        assert!(!connections.close_slowest_reader(Duration::from_secs(60)));
        assert!(connections.close_slowest_reader(Duration::ZERO));
        assert_eq!(states(&clients), [true, false, true]);
        assert!(connections.close_longest_waiting());
    }
}
