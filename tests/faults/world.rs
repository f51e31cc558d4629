//! Rooms on several comets, a load that numbers its messages, and the history of what became
//! of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::history::{History, Interruption, Report, Sent, body, receipts};
use crate::support::kafka::kafka;
use crate::support::loudly;
use crate::support::redis::Redis;

/// How long finishing everything may take after the last fault.
const SETTLE: Duration = Duration::from_secs(120);
/// How many users each room has on each of its comets.
const USERS: usize = 2;

/// What a run takes place in.
pub struct World {
    pub topic: String,
    pub redis: Redis,
    pub comets: Vec<Edge>,
    /// Between two messages of a room.
    pub pause: Duration,
    /// The text of a room's message.
    pub body: fn(&str, u64) -> String,
    rooms: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    next: Mutex<BTreeMap<String, u64>>,
    sent: Mutex<Vec<Sent>>,
    interruptions: Mutex<Vec<Interruption>>,
}

/// A comet, and where the directory says that it is.
pub struct Edge {
    pub comet: FakeComet,
    pub address: String,
}

/// An interruption in the history.
pub struct Noted(usize);

/// Which comets a room's users are on.
pub type Spread = fn(room: usize, comet: usize) -> bool;

/// Every room has users on every comet.
pub fn everywhere(_room: usize, _comet: usize) -> bool {
    true
}

impl World {
    /// Rooms with users on all of these many comets.
    pub async fn new(name: &str, rooms: usize, comets: usize) -> Self {
        let mut edges = Vec::new();
        for _ in 0..comets {
            let comet = FakeComet::start().await;
            let address = comet.address().to_string();
            edges.push(Edge { comet, address });
        }
        Self::with(name, rooms, edges, everywhere).await
    }

    /// Rooms with users on those of these comets.
    pub async fn with(name: &str, rooms: usize, comets: Vec<Edge>, spread: Spread) -> Self {
        let topic = kafka().topic(name, 4).await;
        kafka().create_topic(&dead_letters(&topic), 1).await;
        let mut world = Self {
            topic,
            redis: Redis::start().await,
            comets,
            pause: Duration::from_millis(5),
            body,
            rooms: BTreeMap::new(),
            next: Mutex::default(),
            sent: Mutex::default(),
            interruptions: Mutex::default(),
        };
        for room in 0..rooms {
            let mut users = BTreeMap::new();
            for (at, edge) in world.comets.iter().enumerate().filter(|(at, _)| spread(room, *at)) {
                let names = (0..USERS).map(|user| format!("user-{room}-{at}-{user}"));
                users.insert(edge.address.clone(), names.collect());
            }
            world.rooms.insert(format!("room-{room}"), users);
        }
        world.join_all().await;
        world
    }

    /// Puts everybody into the directory: at first, and after a Redis that forgot.
    pub async fn join_all(&self) {
        for (room, comets) in &self.rooms {
            let connection =
                |comet: &String, user: &String| (format!("conn-{user}"), user.clone(), comet.clone());
            let all =
                comets.iter().flat_map(|(comet, users)| users.iter().map(|user| connection(comet, user)));
            self.redis.join_many(room, &all.collect::<Vec<_>>()).await;
        }
    }

    /// A gateway for this world. As a static member, so that who starts again gets the
    /// partitions at once.
    pub fn gateway(&self) -> Gateway {
        gateway(&self.topic)
            .redis(&self.redis)
            .set("kafka", "instance", quoted("gateway-0"))
            .set("kafka", "commit_every", quoted("100ms"))
            .set("kafka", "session_timeout", quoted("6s"))
    }

    /// Sends to all rooms, each in order, until this is done.
    pub async fn load_during<T>(&self, faults: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let load = async {
            let rooms = self.rooms.keys().map(|room| self.load(room, &stop));
            futures_util::future::join_all(rooms).await
        };
        let faults = async {
            let _stop = stop.clone().drop_guard();
            faults.await
        };
        tokio::join!(load, faults).1
    }

    /// Sends so many messages to every room.
    pub async fn send(&self, count: usize) {
        let rooms = self.rooms.keys().map(|room| async move {
            for _ in 0..count {
                self.say(room).await;
            }
        });
        futures_util::future::join_all(rooms).await;
    }

    async fn load(&self, room: &str, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            self.say(room).await;
            tokio::time::sleep(self.pause).await;
        }
    }

    async fn say(&self, room: &str) {
        let number = {
            let mut next = self.next.lock().expect("no panic holds it");
            let number = next.entry(room.to_owned()).or_default();
            *number += 1;
            *number
        };
        let id = kafka().produce_room(&self.topic, room, (self.body)(room, number)).await;
        self.sent.lock().expect("no panic holds it").push(Sent::new(room, number, id));
    }

    /// How many messages were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.lock().expect("no panic holds it").len()
    }

    /// How often comets were called so far.
    pub fn received(&self) -> usize {
        self.comets.iter().map(|edge| edge.comet.calls().len()).sum()
    }

    /// Notes that a gateway of this group has just died, and what the group had committed.
    pub async fn note_interruption(&self, group: &str) -> Noted {
        let from = Instant::now();
        let committed = kafka().committed(group, &self.topic).await;
        let mut interruptions = self.interruptions.lock().expect("no panic holds it");
        interruptions.push(Interruption { from, until: from, committed, read: Instant::now() });
        Noted(interruptions.len() - 1)
    }

    /// The interruption has lasted until now: a gateway that stood still may have gone on.
    pub fn note_end(&self, noted: &Noted) {
        self.interruptions.lock().expect("no panic holds it")[noted.0].until = Instant::now();
    }

    /// Waits until everything that was sent is settled.
    pub async fn settle(&self, gateway: &RunningGateway) {
        let until = Instant::now() + SETTLE;
        loop {
            let committed = kafka().committed(gateway.group(), &self.topic).await;
            let ends = kafka().ends(&self.topic);
            if committed == ends {
                return;
            }
            let late = Instant::now() > until;
            assert!(!late, "committed {committed:?} of {ends:?} after {SETTLE:?}; {gateway:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The history so far, from the comets, the inboxes and the dead-letter topic.
    pub async fn history(&self) -> History {
        let mut history = History {
            rooms: self.rooms.clone(),
            sent: self.sent.lock().expect("no panic holds it").clone(),
            interruptions: self.interruptions.lock().expect("no panic holds it").clone(),
            ..History::default()
        };
        for edge in &self.comets {
            history.received.extend(receipts(&edge.address, &edge.comet.calls()));
        }
        for user in self.rooms.values().flat_map(BTreeMap::values).flatten() {
            for id in self.inbox(user).await {
                history.kept.insert((id, user.clone()));
            }
        }
        for letter in kafka().read_all(&dead_letters(&self.topic)) {
            let header = |name| letter.header(name).unwrap_or_else(|| panic!("no {name}: {letter:?}"));
            let [topic, partition, offset] =
                ["halley-origin-topic", "halley-origin-partition", "halley-origin-offset"].map(header);
            history.dead_lettered.insert(format!("{topic}/{partition}/{offset}"));
        }
        history
    }

    /// Checks the history and tells what it found.
    pub async fn report(&self) -> Report {
        let report = self.history().await.check();
        loudly(format_args!("{}: {report}", self.topic));
        report
    }

    async fn inbox(&self, user: &str) -> Vec<String> {
        let entries = self.redis.stream(&format!("halley:inbox:{user}")).await;
        let id = |entry: Vec<(String, Vec<u8>)>| entry.into_iter().find(|(name, _)| name == "id");
        let ids = entries.into_iter().filter_map(id);
        ids.map(|(_, id)| String::from_utf8_lossy(&id).into_owned()).collect()
    }
}

/// Where a topic's records go that cannot be delivered.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}.dead-letter")
}
