//! The demo's environment: a Kafka, three comets, a few users in three rooms, and a gateway.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::cli::demo::comets::{DemoComets, ReceivedCall};
use crate::cli::demo::policies::{BundledPolicies, DemoFolder};
use crate::config::Config;
use crate::consumer::StopOutcome;
use crate::directory::MemoryDirectory;
use crate::gateway::{Gateway, Handle, Storage};
use crate::inbox::{InboxReader, PageQuery};
use crate::kafka::{MockBroker, Producer};
use crate::message::{Audience, UserId, encode};

/// The users: (room, user, comet, online).
const PEOPLE: [(&str, &str, usize, bool); 8] = [
    ("music", "alice", 0, true),
    ("music", "bob", 0, true),
    ("music", "carol", 1, true),
    ("games", "dave", 1, true),
    ("games", "erin", 2, true),
    ("news", "grace", 0, true),
    ("news", "heidi", 2, true),
    ("news", "frank", 2, false),
];

/// The demo's rooms.
pub(super) const ROOMS: [&str; 3] = ["music", "games", "news"];

/// Everything that the demo runs.
pub(super) struct DemoEnvironment {
    pub(super) folder: DemoFolder,
    pub(super) comets: DemoComets,
    pub(super) inbox: Arc<dyn InboxReader>,
    directory: MemoryDirectory,
    pub(super) gateway: Handle,
    pub(super) admin: std::net::SocketAddr,
    producer: Producer,
    broker: MockBroker,
    running: Gateway,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl DemoEnvironment {
    /// Starts everything.
    pub(super) async fn start(policies: BundledPolicies) -> anyhow::Result<Self> {
        let broker = MockBroker::start(&[("push", 4), ("push.dead-letter", 1), ("push.offline", 1)])?;
        let comets = DemoComets::start(3).await?;

        let folder = policies.set_up(&broker.brokers(), &comets.addresses)?;
        let config = Config::load(Some(&folder.config()))?;
        let directory = MemoryDirectory::new(true);
        for (room, user, comet, online) in PEOPLE {
            directory.enter(room, &connection_of(user), user, comets.addresses[comet].as_str());
            if !online {
                directory.offline(user);
            }
        }
        let plugins = config.plugins()?;
        let mut registry = Registry::default();
        let listener = Admin::bind(&config.admin, &mut registry).await?;
        let admin = listener.address();
        let storage = Storage::memory(directory.clone(), &config, &mut registry);
        let inbox = Arc::clone(&storage.inbox_reader);
        let sources = config.sources(Some(folder.config()));
        let running = Gateway::start_with(&config, plugins, sources, storage, registry).await?;
        let gateway = running.handle();

        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(listener.serve(gateway.clone(), shutdown.clone()));
        let producer = Producer::new(&config.kafka)?;
        Ok(Self {
            folder,
            comets,
            inbox,
            directory,
            gateway,
            admin,
            producer,
            broker,
            running,
            shutdown,
            tasks,
        })
    }

    /// The address of the demo's Kafka, for other producers.
    pub(super) fn brokers(&self) -> String {
        self.broker.brokers()
    }

    /// Produces a message as a logic service does: one partition per room.
    pub(super) async fn produce(&self, audience: &Audience, body: &str) -> anyhow::Result<()> {
        let key = match audience {
            Audience::Room(room) => room.to_string(),
            Audience::Keys { keys, .. } => keys.join(","),
            Audience::Everyone { .. } => String::new(),
        };
        let value = encode(audience, 5, body.as_bytes());
        self.producer.put("push", key.as_bytes(), &value).await?;
        Ok(())
    }

    /// The next call; `None` on timeout.
    pub(super) async fn arrival(&mut self, within: Duration) -> Option<ReceivedCall> {
        tokio::time::timeout(within, self.comets.arrivals.recv()).await.ok().flatten()
    }

    /// How many messages are in a user's inbox.
    pub(super) async fn inbox_of(&self, user: &str) -> usize {
        let page = self.inbox.page(&UserId::from(user), &PageQuery::default()).await;
        page.map_or(0, |page| page.entries.len())
    }

    /// A user returns: the comet registers the connection, and then has the inbox replayed. Returns how
    /// many messages were pushed.
    pub(super) async fn come_back(&self, user: &str) -> anyhow::Result<usize> {
        self.directory.online(user, &connection_of(user));
        let query = PageQuery::default();
        Ok(self.gateway.replay(&UserId::from(user), None, &query).await?.pushed)
    }

    /// Drains and stops. Returns whether everything was finished.
    pub(super) async fn stop(self) -> bool {
        let stopped = self.running.stop(Duration::from_secs(10)).await;
        self.shutdown.cancel();
        self.tasks.close();
        drop(tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await);
        stopped == StopOutcome::Drained
    }
}

/// The demo's connection ids.
pub(super) fn connection_of(user: &str) -> String {
    format!("{user}-phone")
}
