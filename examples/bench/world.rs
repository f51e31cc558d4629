//! The servers, comets and topics that arms share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::comets::Comets;
use crate::gateway::{Around, Gateway};
use crate::producer::{Producer, room_name};
use crate::rows::{Arm, Dialect, Scenario};
use crate::servers::{Kafka, Redis};

/// The maximum number of comets of a row.
const COMETS: usize = 64;

/// The sizes of the measurements.
pub(crate) struct Sizes {
    /// Records of a full backlog.
    pub(crate) backlog: usize,
    /// Calls of the bare loop.
    pub(crate) calls: usize,
    /// Live messages, 1,000 a second.
    pub(crate) live: usize,
    /// Lone messages.
    pub(crate) lone: usize,
    /// Messages in flight while memory is measured.
    pub(crate) held: usize,
    /// Swaps of policies.
    pub(crate) swaps: usize,
}

impl Sizes {
    fn new(quick: bool) -> Self {
        if quick {
            Self { backlog: 40_000, calls: 40_000, live: 3_000, lone: 100, held: 20_000, swaps: 50 }
        } else {
            Self { backlog: 200_000, calls: 200_000, live: 10_000, lone: 300, held: 50_000, swaps: 1_000 }
        }
    }
}

/// Which of the gateway's binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Now,
    /// What it is compared with.
    Before,
}

/// The gateway's environment.
pub(crate) struct World {
    pub(crate) sizes: Sizes,
    pub(crate) comets: Comets,
    /// Which binary is started.
    pub(crate) version: Version,
    kafka: Kafka,
    redis: Redis,
    binary: PathBuf,
    before: Option<PathBuf>,
    /// Filled topics, by rooms and records.
    topics: BTreeMap<(usize, usize), String>,
    names: usize,
}

impl World {
    /// Starts the servers.
    ///
    /// # Errors
    /// When something is missing.
    pub(crate) fn start(
        binary: Option<PathBuf>,
        before: Option<PathBuf>,
        quick: bool,
    ) -> anyhow::Result<Self> {
        let binary = binary.map_or_else(built_next_to_it, Ok)?;
        for binary in before.iter().chain([&binary]) {
            anyhow::ensure!(binary.exists(), "{} is missing; `make bench` builds it", binary.display());
        }
        eprintln!("starting Kafka and Redis");
        Ok(Self {
            sizes: Sizes::new(quick),
            comets: Comets::start(COMETS)?,
            kafka: Kafka::start()?,
            redis: Redis::start()?,
            version: Version::Now,
            binary,
            before,
            topics: BTreeMap::new(),
            names: 0,
        })
    }

    /// For `bootstrap.servers`.
    pub(crate) fn brokers(&self) -> &str {
        self.kafka.brokers()
    }

    /// The URL of Redis.
    pub(crate) fn redis(&self) -> String {
        self.redis.url()
    }

    /// Which binaries an arm is run with.
    pub(crate) fn versions(&self, arm: &Arm) -> Vec<Version> {
        let before = self.before.is_some() && matches!(arm, Arm::Gateway(_));
        if before { vec![Version::Now, Version::Before] } else { vec![Version::Now] }
    }

    /// The version of a gateway's binary, and its path.
    pub(crate) fn gateway(&self, version: Version) -> Option<String> {
        let binary = self.binary(version)?;
        let output = Command::new(binary).arg("--version").output().ok()?;
        Some(format!("{} ({})", String::from_utf8_lossy(&output.stdout).trim(), binary.display()))
    }

    fn binary(&self, version: Version) -> Option<&Path> {
        match version {
            Version::Now => Some(&self.binary),
            Version::Before => self.before.as_deref(),
        }
    }

    /// A topic with this many records for this many rooms in turn; filled once.
    ///
    /// # Errors
    /// When Kafka does not accept them.
    pub(crate) async fn backlog(&mut self, rooms: usize, records: usize) -> anyhow::Result<String> {
        if let Some(topic) = self.topics.get(&(rooms, records)) {
            return Ok(topic.clone());
        }
        let mut producer = self.producer(Duration::from_millis(20)).await?;
        for record in 0..records {
            producer.send(record % rooms)?;
        }
        producer.flush()?;
        let topic = producer.topic().to_owned();
        self.topics.insert((rooms, records), topic.clone());
        Ok(topic)
    }

    /// A producer with a topic of its own.
    ///
    /// # Errors
    /// When Kafka does not create it.
    pub(crate) async fn producer(&mut self, linger: Duration) -> anyhow::Result<Producer> {
        let topic = self.name("bench");
        Producer::new(self.kafka.brokers(), &topic, linger).await
    }

    /// A gateway that reads this topic from its beginning.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn start_gateway(
        &mut self,
        scenario: &Scenario,
        topic: &str,
    ) -> anyhow::Result<Gateway> {
        let group = self.name("group");
        self.comets.reset(Duration::from_millis(scenario.delay), scenario.streams);
        let comets = self.comets.addresses(scenario.comets);
        fill_directory(&self.redis.url(), scenario, comets).await?;
        let (brokers, redis) = (self.kafka.brokers(), self.redis.url());
        let around = Around { brokers, redis: &redis, topic, group: &group, comets };
        let binary = self.binary(self.version).context("no such binary was named")?;
        Gateway::start(binary, scenario, &around)
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}-{}", self.names)
    }
}

/// The gateway's binary in the folder of this program, or in the one above.
fn built_next_to_it() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).context("this program has no folder")?;
    Ok(folder.join("halley"))
}

/// Empties Redis, and registers a connection of each comet in each room, as comets do.
async fn fill_directory(url: &str, scenario: &Scenario, comets: &[SocketAddr]) -> anyhow::Result<()> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    if scenario.dialect != Dialect::Chatroom {
        return Ok(());
    }
    for room in 0..scenario.rooms {
        let room = room_name(room);
        let mut pipe = redis::pipe();
        for (at, comet) in comets.iter().enumerate() {
            let (id, user) = (format!("conn-{room}-{at}"), format!("user-{room}-{at}"));
            pipe.sadd(format!("room:connections:{room}"), &id).ignore();
            let info =
                [("comet_id", comet.to_string()), ("user_id", user.clone()), ("room_id", room.clone())];
            pipe.hset_multiple(format!("connection:info:{id}"), &info).ignore();
            pipe.set_ex(format!("user:online:{user}"), &id, 3600).ignore();
        }
        pipe.query_async::<()>(&mut connection).await?;
    }
    Ok(())
}
