//! Rooms on several comets, a load of numbered messages, and the history of their delivery.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use halley::message::MESSAGE_ID;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::faults::{GroupProtocol, Mode, excuses};
use crate::support::comet::{Dialect, FakeComet, Serves};
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::history::{Excuse, History, Interruption, Report, SentMessage, body, receipts};
use crate::support::kafka::{Kafka, kafka};
use crate::support::print_uncaptured;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;

/// The maximum time to deliver everything after the last fault.
const SETTLE: Duration = Duration::from_secs(120);
/// How many users each room has on each of its comets.
const USERS: usize = 2;
/// The number of partitions of a topic.
const PARTITIONS: i32 = 4;

/// Which comets a room has users on.
pub type Spread = fn(room: usize, comet: usize) -> bool;

/// Builds a [`World`].
pub struct WorldBuilder {
    pub name: &'static str,
    pub rooms: usize,
    pub comets: usize,
    pub spread: Spread,
    /// How its comets take messages, and its gateways share partitions.
    pub mode: Mode,
    /// The number of partitions of its topic.
    pub partitions: i32,
    /// The seed of a bad network to the comets and Redis, if any.
    pub network: Option<u64>,
    /// A Kafka of its own instead of the shared one, optionally behind a bad network.
    pub kafka: Option<(Kafka, Option<Proxy>)>,
    pub redis: Redis,
}

impl WorldBuilder {
    /// Rooms with users on each of this many comets, on a healthy network.
    pub async fn new(name: &'static str, rooms: usize, comets: usize) -> Self {
        let redis = Redis::start_keeping().await;
        let (spread, mode): (Spread, _) = (|_, _| true, Serves::Calls.into());
        let partitions = PARTITIONS;
        Self { name, rooms, comets, spread, mode, partitions, network: None, kafka: None, redis }
    }

    /// Whose comets take messages in this way, and gateways share partitions in this way.
    pub fn serving(self, mode: impl Into<Mode>) -> Self {
        Self { mode: mode.into(), ..self }
    }

    /// Builds the world.
    pub async fn build(self) -> World {
        let topic = {
            let broker = self.kafka.as_ref().map_or_else(|| kafka(), |(kafka, _)| kafka);
            let topic = broker.topic(self.name, self.partitions).await;
            broker.create_topic(&dead_letters(&topic), 1).await;
            topic
        };
        let mut comets = Vec::new();
        for at in 0..self.comets {
            let network = self.network.map(|seed| seed + at as u64);
            comets.push(CometEndpoint::start(self.mode.serves, network).await);
        }
        let redis_proxy = match self.network {
            Some(seed) => Some(Proxy::start(self.redis.url().trim_start_matches("redis://"), seed).await),
            None => None,
        };
        let rooms = (0..self.rooms).map(|room| (format!("room-{room}"), users(room, &comets, self.spread)));
        let world = World {
            topic,
            protocol: self.mode.protocol,
            partitions: self.partitions,
            rooms: rooms.collect(),
            comets,
            redis: tokio::sync::Mutex::new(self.redis),
            redis_proxy,
            kafka: self.kafka,
            pause: Duration::from_millis(5),
            body,
            began: Instant::now(),
            next: Mutex::default(),
            sent: Mutex::default(),
            interruptions: Mutex::default(),
            excuses: Mutex::default(),
            incarnation: AtomicU32::default(),
            old_marks: Mutex::default(),
        };
        world.join_all().await;
        world
    }
}

fn users(room: usize, comets: &[CometEndpoint], spread: Spread) -> BTreeMap<String, Vec<String>> {
    let here = comets.iter().enumerate().filter(|(at, _)| spread(room, *at));
    let names = |at: usize| (0..USERS).map(|user| format!("user-{room}-{at}-{user}")).collect();
    here.map(|(at, edge)| (edge.address.clone(), names(at))).collect()
}

/// A comet, and its address in the directory.
pub struct CometEndpoint {
    pub comet: FakeComet,
    pub address: String,
    proxy: Option<Proxy>,
}

impl CometEndpoint {
    async fn start(serves: Serves, network: Option<u64>) -> Self {
        let comet = FakeComet::start_serving(Dialect::Chatroom, serves).await;
        let address = comet.address().to_string();
        match network {
            None => Self { comet, address, proxy: None },
            Some(seed) => {
                let proxy = Proxy::start(address, seed).await;
                Self { comet, address: proxy.address(), proxy: Some(proxy) }
            }
        }
    }

    /// The network before it.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the plan has a network")
    }
}

/// The environment of a run.
pub struct World {
    pub topic: String,
    protocol: GroupProtocol,
    partitions: i32,
    pub comets: Vec<CometEndpoint>,
    pub redis: tokio::sync::Mutex<Redis>,
    pub redis_proxy: Option<Proxy>,
    pub kafka: Option<(Kafka, Option<Proxy>)>,
    /// The pause between two messages of a room.
    pub pause: Duration,
    /// The text of a room's message.
    pub body: fn(&str, u64) -> String,
    began: Instant,
    rooms: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    next: Mutex<BTreeMap<String, u64>>,
    sent: Mutex<Vec<SentMessage>>,
    interruptions: Mutex<Vec<Interruption>>,
    excuses: Mutex<Vec<Excuse>>,
    incarnation: AtomicU32,
    /// The offset metadata of deleted incarnations of the topic.
    old_marks: Mutex<BTreeSet<String>>,
}

/// An interruption in the history.
pub struct InterruptionId(usize);

impl World {
    /// Rooms with users on each of this many comets.
    pub async fn new(name: &'static str, rooms: usize, comets: usize) -> Self {
        Self::serving(Serves::Calls, name, rooms, comets).await
    }

    /// The same, with comets that take messages in this way, and gateways that share partitions in this way.
    pub async fn serving(mode: impl Into<Mode>, name: &'static str, rooms: usize, comets: usize) -> Self {
        WorldBuilder::new(name, rooms, comets).await.serving(mode).build().await
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The Kafka that it uses.
    pub fn broker(&self) -> &Kafka {
        self.kafka.as_ref().map_or_else(|| kafka(), |(kafka, _)| kafka)
    }

    async fn join_all(&self) {
        let redis = self.redis.lock().await;
        for (room, comets) in &self.rooms {
            let connection =
                |comet: &String, user: &String| (format!("conn-{user}"), user.clone(), comet.clone());
            let all =
                comets.iter().flat_map(|(comet, users)| users.iter().map(|user| connection(comet, user)));
            redis.join_many(room, &all.collect::<Vec<_>>()).await;
        }
    }

    /// A gateway for this world. It is a static member if it can be, so that a restarted one gets its
    /// partitions at once.
    pub async fn gateway(&self) -> Gateway {
        let mut settings = gateway(&self.topic);
        if let Some((kafka, proxy)) = &self.kafka {
            settings = settings.kafka(kafka);
            if let Some(proxy) = proxy {
                settings = settings.set("kafka", "brokers", quoted(&proxy.address()));
            }
        }
        settings = settings.redis(&*self.redis.lock().await);
        if let Some(proxy) = &self.redis_proxy {
            settings = settings.set("redis", "url", quoted(&format!("redis://{}", proxy.address())));
        }
        if self.protocol == GroupProtocol::Consumer {
            settings = settings.set("kafka", "properties", "{ \"group.protocol\" = \"consumer\" }");
        }
        // Brokers of KIP-848 let a member that was killed in again only when its session has ended.
        let instance = if self.protocol == GroupProtocol::Consumer { "" } else { "gateway-0" };
        settings
            .set("kafka", "instance_id", quoted(instance))
            .set("kafka", "commit_interval", quoted("100ms"))
            .set("kafka", "session_timeout", quoted("6s"))
            .set("log", "level", quoted(excuses::LOG_LEVEL))
            // By default, the oldest beyond 1,000 are dropped.
            .set("offline", "max_per_user", 1_000_000)
    }

    /// Sends to all rooms, each in order, until `faults` is done.
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

    async fn load(&self, room: &str, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            self.say(room).await;
            tokio::time::sleep(self.pause).await;
        }
    }

    async fn say(&self, room: &str) {
        let number = {
            let mut next = self.next.lock();
            let number = next.entry(room.to_owned()).or_default();
            *number += 1;
            *number
        };
        let id = self.broker().produce_room(&self.topic, room, (self.body)(room, number)).await;
        let sent = SentMessage { incarnation: self.incarnation(), ..SentMessage::new(room, number, id) };
        self.sent.lock().push(sent);
    }

    /// How often comets were called so far.
    pub fn received(&self) -> usize {
        self.comets.iter().map(|edge| edge.comet.count()).sum()
    }

    /// Waits until comets were called this many times more.
    pub async fn wait_for_work(&self, calls: usize) {
        let sent = || self.sent.lock().len();
        let (before, sent_before) = (self.received(), sent());
        let until = Instant::now() + Duration::from_secs(60);
        while self.received() < before + calls {
            let made = self.received() - before;
            let sent = sent() - sent_before;
            assert!(
                Instant::now() < until,
                "deadline exceeded waiting for {calls} calls: {made} for {sent} messages"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn incarnation(&self) -> u32 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// Deletes the topic and creates it again, while nothing is sent. Records of the new topic that the
    /// gateway reads before it notices the change may be delivered twice.
    pub async fn recreate_topic(&self, group: &str) -> InterruptionId {
        let marks = self.broker().view().committed_marks(group, &self.topic).await;
        let ids = marks.values().map(|(_, mark)| topic_id(mark).to_owned());
        self.old_marks.lock().extend(ids);
        self.broker().recreate_topic(&self.topic, self.partitions).await;
        let incarnation = 1 + self.incarnation.fetch_add(1, Ordering::Relaxed);
        let from = Instant::now();
        let mut interruptions = self.interruptions.lock();
        let committed = BTreeMap::new();
        interruptions.push(Interruption { from, until: from, incarnation, committed, read: from });
        InterruptionId(interruptions.len() - 1)
    }

    /// Notes that a gateway of this group has just died, and what the group had committed.
    pub async fn note_interruption(&self, group: &str) -> InterruptionId {
        let from = Instant::now();
        let committed = self.broker().view().committed_marks(group, &self.topic).await;
        let old = self.old_marks.lock().clone();
        let present = committed.into_iter().filter(|(_, (_, mark))| !old.contains(topic_id(mark)));
        let committed = present.map(|(partition, (offset, _))| (partition, offset)).collect();
        let mut interruptions = self.interruptions.lock();
        let (incarnation, read) = (self.incarnation(), Instant::now());
        interruptions.push(Interruption { from, until: from, incarnation, committed, read });
        InterruptionId(interruptions.len() - 1)
    }

    /// The interruption has lasted until now: a frozen gateway may have resumed.
    pub fn note_end(&self, noted: &InterruptionId) {
        self.interruptions.lock()[noted.0].until = Instant::now();
    }

    /// Records this gateway's logged reasons for repeated messages. Call it before the gateway is dropped,
    /// and at its end.
    pub fn note_log(&self, gateway: &RunningGateway) {
        self.excuses.lock().extend(excuses::excuses(gateway));
    }

    /// Waits until every sent message is settled, and records the gateway's log.
    pub async fn settle(&self, gateway: &RunningGateway) {
        let until = Instant::now() + SETTLE;
        loop {
            let committed = self.broker().committed(gateway.group(), &self.topic).await;
            let ends = self.broker().ends(&self.topic);
            if committed == ends {
                return self.note_log(gateway);
            }
            let late = Instant::now() > until;
            assert!(!late, "committed {committed:?} of {ends:?} after {SETTLE:?}; {gateway:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The history so far, from the comets, the inboxes and the dead-letter topic.
    pub async fn history(&self) -> History {
        let mut history = History {
            began: Some(self.began),
            rooms: self.rooms.clone(),
            incarnation: self.incarnation(),
            sent: self.sent.lock().clone(),
            interruptions: self.interruptions.lock().clone(),
            excuses: self.excuses.lock().clone(),
            ..History::default()
        };
        for edge in &self.comets {
            let calls = edge.comet.calls();
            history.received.extend(receipts(&edge.address, &calls));
            for id in calls.iter().filter(|call| call.refused).flat_map(|call| &call.messages) {
                history.refused.insert((id.clone(), edge.address.clone()));
            }
        }
        let redis = self.redis.lock().await;
        for user in self.rooms.values().flat_map(BTreeMap::values).flatten() {
            for id in inbox(&redis, user).await {
                history.kept.insert((id, user.clone()));
            }
        }
        for letter in self.broker().read_all(&dead_letters(&self.topic)) {
            let id = letter.header(MESSAGE_ID).unwrap_or_else(|| panic!("no id: {letter:?}"));
            history.dead_lettered.insert(id);
        }
        history
    }

    /// Checks the history and reports its findings.
    pub async fn report(&self) -> Report {
        let report = self.history().await.check();
        print_uncaptured(format_args!("{}: {report}", self.topic));
        report
    }
}

/// The topic's id in what a gateway commits with an offset: `halley/1 <topic id> <partitions>`.
fn topic_id(mark: &str) -> &str {
    mark.split(' ').nth(1).unwrap_or_default()
}

async fn inbox(redis: &Redis, user: &str) -> Vec<String> {
    let entries = redis.stream(&format!("halley:inbox:{user}")).await;
    let id = |entry: Vec<(String, Vec<u8>)>| entry.into_iter().find(|(name, _)| name == "id");
    entries.into_iter().filter_map(id).map(|(_, id)| String::from_utf8_lossy(&id).into_owned()).collect()
}

/// The dead-letter topic of a topic.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}.dead-letter")
}
