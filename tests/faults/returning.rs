//! Users who leave and return under load, while gateways are killed, comets die and Redis is restarted or
//! fails over: what is decided for a user is delivered live or in the inbox and, with the archive, in MySQL,
//! and two devices with cursors of their own replay all of it, in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use halley::api::proto::inbox::inbox_client::InboxClient;
use halley::api::proto::inbox::{AcknowledgeRequest, Owner, Page, ReadRequest, ReplayRequest, owner};
use halley::message::MESSAGE_ID;
use parking_lot::Mutex;
use sqlx::Row as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::store::Store;
use super::world::dead_letters;
use super::{seeded, some_time};
use crate::archive;
use crate::support::comet::{Dialect, FakeComet, Serves, To};
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::history::{SentMessage, UserHistory, UserReport};
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_sentinel::RedisSentinel;
use crate::support::{PATIENCE, eventually, free_port, print_uncaptured};

in_each_mode!(users_who_come_and_go_miss_nothing, serves => coming_and_going(serves, 12, Duration::from_secs(8)));

/// Entries per page of a replay.
const PAGE: u32 = 50;

/// Users, their connections, and the messages for them.
struct Coming {
    topic: String,
    comets: Vec<FakeComet>,
    redis: tokio::sync::Mutex<Store>,
    /// Of the archive, if there is one.
    database: Option<MariaDb>,
    api: String,
    users: Vec<String>,
    history: Mutex<UserHistory>,
    returns: AtomicUsize,
    stop: CancellationToken,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_come_and_go_while_redis_fails_over_miss_nothing() {
    let store = Store::FailedOver(RedisSentinel::start().await);
    coming_and_going_with(store, Serves::Calls, 6, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_come_and_go_while_a_cluster_fails_over_miss_nothing() {
    let store = Store::Cluster(RedisCluster::start_with_replicas().await);
    coming_and_going_with(store, Serves::Calls, 6, Duration::from_secs(6)).await;
}

/// Users come and go, and faults happen, for this long. Then everything is checked.
pub async fn coming_and_going(serves: Serves, users: usize, lasts: Duration) {
    let redis = Redis::start_keeping().await;
    if redis.can_stop("users who come and go") {
        coming_and_going_with(Store::Restarted(redis), serves, users, lasts).await;
    }
}

async fn coming_and_going_with(store: Store, serves: Serves, users: usize, lasts: Duration) {
    let mut random = seeded("coming and going");
    let topic = kafka().topic("coming", 4).await;
    kafka().create_topic(&dead_letters(&topic), 1).await;
    let api = format!("127.0.0.1:{}", free_port());
    let mut settings = settings(&topic, &store.url(), &api).set("kafka", "instance_id", quoted("gateway-0"));
    let database = match serves {
        // Once is enough.
        Serves::Calls => None,
        Serves::Streams => MariaDb::start("users who come and go").await,
    };
    if let Some(database) = &database {
        settings = archiving(settings, &topic, database).await;
    }
    let (one, other) = (
        FakeComet::start_serving(Dialect::Chatroom, serves).await,
        FakeComet::start_serving(Dialect::Chatroom, serves).await,
    );
    let world = Coming {
        topic,
        comets: vec![one, other],
        redis: tokio::sync::Mutex::new(store),
        database,
        api,
        users: (0..users).map(|user| format!("user-{user}")).collect(),
        // What a killed gateway had stored is stored again.
        history: Mutex::new(UserHistory { interrupted: true, ..UserHistory::default() }),
        returns: AtomicUsize::new(0),
        stop: CancellationToken::new(),
    };
    let mut gateway = settings.clone().start().await;
    let mut chance = || fastrand::Rng::with_seed(random.u64(..));
    let coming: Vec<_> = world.users.iter().map(|user| world.come_and_go(user, chance())).collect();
    let faults = world.faults(&settings, &mut gateway, lasts, chance());
    let ((), (), phones) = tokio::join!(faults, world.load(), futures_util::future::join_all(coming));
    gateway.wait_until_settled(&world.topic).await;
    let report = world.report(phones).await;
    let returns = world.returns.load(Ordering::Relaxed);
    print_uncaptured(format_args!(
        "coming and going: {returns} returns, {} messages, {} live, {} stored",
        report.decided, report.live, report.stored
    ));
    report.assert_exactly_once_in_order();
    assert!(report.live > 0 && report.stored > 0 && returns > users);
}

/// Archives to this database.
async fn archiving(settings: Gateway, topic: &str, database: &MariaDb) -> Gateway {
    let archive_topic = format!("{topic}.archive");
    kafka().create_topic(&archive_topic, 2).await;
    let settings = settings
        .set("archive", "enabled", true)
        .set("archive", "topic", quoted(&archive_topic))
        .set("archive", "group", quoted(&format!("{topic}-archive")))
        .set("archive", "url", quoted(&database.url()))
        .set("archive", "max_wait", quoted("50ms"));
    archive::init(&settings, &[]).await;
    settings
}

fn settings(topic: &str, redis: &str, api: &str) -> Gateway {
    gateway(topic)
        .set("redis", "url", quoted(redis))
        .set("routing", "push_keys", quoted("users"))
        .set("api", "listen", quoted(api))
        .set("kafka", "commit_interval", quoted("100ms"))
        .set("kafka", "session_timeout", quoted("6s"))
        .set("delivery", "delivery_timeout", quoted("2s"))
        .set("offline", "max_per_user", 1_000_000)
}

impl Coming {
    /// Messages for every user, each user's in order.
    async fn load(&self) {
        let say = async |user: &String| {
            for number in 0.. {
                if self.stop.is_cancelled() {
                    return;
                }
                let id = kafka().produce_keys(&self.topic, None, &[user], format!("{number}")).await;
                self.history.lock().decided.entry(user.clone()).or_default().push(id);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        };
        futures_util::future::join_all(self.users.iter().map(say)).await;
    }

    /// Returns with a new connection, replays, stays for a while, and leaves; again and again.
    async fn come_and_go(&self, user: &str, mut random: fastrand::Rng) -> Device {
        let mut phone = Device::new(user, "phone");
        let room = format!("room-{user}");
        for number in 0.. {
            if self.stop.is_cancelled() {
                break;
            }
            let comet = self.comets[random.usize(..self.comets.len())].address();
            let connection = format!("{user}.{number}");
            self.redis.lock().await.join(&room, &connection, user, comet).await;
            phone.replay(&self.api).await;
            self.returns.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(some_time(&mut random, Duration::from_millis(300))).await;
            self.redis.lock().await.leave(&room, &connection, user).await;
            tokio::time::sleep(some_time(&mut random, Duration::from_millis(300))).await;
        }
        phone
    }

    /// One fault after another; the gateway runs at the end.
    async fn faults(
        &self,
        settings: &Gateway,
        gateway: &mut RunningGateway,
        lasts: Duration,
        mut random: fastrand::Rng,
    ) {
        let until = Instant::now() + lasts;
        let mut failures = 0;
        // Redis fails at least once, and users return although that takes long.
        let have_returned = || self.returns.load(Ordering::Relaxed) > self.users.len();
        while Instant::now() < until || failures == 0 || !have_returned() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(1))).await;
            match random.usize(..4) {
                0 => {
                    gateway.kill();
                    *gateway = settings.clone().start().await;
                }
                1 => {
                    gateway.sigterm().await;
                    *gateway = settings.clone().start().await;
                }
                2 => {
                    let comet = &self.comets[random.usize(..self.comets.len())];
                    comet.stop().await;
                    tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
                    comet.restart().await;
                }
                _ => {
                    let away = some_time(&mut random, Duration::from_secs(1));
                    self.redis.lock().await.fail(away).await;
                    failures += 1;
                }
            }
        }
        self.stop.cancel();
    }

    /// What became of every message. Another device of each user reads everything at the end.
    async fn report(&self, phones: Vec<Device>) -> UserReport {
        let mut history = self.history.lock().clone();
        if let Some(database) = &self.database {
            history.archived = Some(self.archived(database).await);
        }
        for mut phone in phones {
            let mut tablet = Device::new(&phone.user, "tablet");
            for device in [&mut phone, &mut tablet] {
                device.replay(&self.api).await;
                let got = std::mem::take(&mut device.got);
                history.replayed.insert((device.user.clone(), device.name.to_owned()), got);
            }
        }
        let redis = self.redis.lock().await;
        for user in &self.users {
            history.inbox.insert(user.clone(), redis.ids(&format!("halley:inbox:{user}")).await);
        }
        for call in self.comets.iter().flat_map(FakeComet::calls).filter(|call| !call.refused) {
            let To::Keys(connections) = &call.to else { panic!("{call:?}") };
            for connection in connections {
                let (user, _) = connection.rsplit_once('.').expect("user.number");
                history.live.entry(user.to_owned()).or_default().extend(call.messages.iter().cloned());
            }
        }
        for letter in kafka().read_all(&dead_letters(&self.topic)) {
            history.dead_lettered.insert(letter.header(MESSAGE_ID).expect("an id"));
        }
        history.check()
    }
}

impl Coming {
    /// The archive of each user, once the archivers have committed everything.
    async fn archived(&self, database: &MariaDb) -> BTreeMap<String, Vec<String>> {
        let (group, topic) = (format!("{}-archive", self.topic), format!("{}.archive", self.topic));
        let all = async || (kafka().committed(&group, &topic).await == kafka().ends(&topic)).then_some(());
        eventually("the archivers to commit", 2 * PATIENCE, all).await;
        let sent: Vec<String> = self.history.lock().decided.values().flatten().cloned().collect();
        let ids: HashMap<(i32, i64), String> = sent
            .into_iter()
            .map(|id| SentMessage::new("", 0, id))
            .map(|sent| ((sent.partition, sent.offset), sent.id))
            .collect();
        let mut archived = BTreeMap::<String, Vec<String>>::new();
        let query = "SELECT user, part, off FROM halley_inbox ORDER BY sent_ms, topic, part, off";
        for row in database.rows(query).await {
            let user = String::from_utf8(row.try_get(0).expect("bytes")).expect("text");
            let place = (row.try_get(1).expect("a number"), row.try_get(2).expect("a number"));
            archived.entry(user).or_default().push(ids.get(&place).cloned().unwrap_or_default());
        }
        archived
    }
}

/// A device with its own cursor.
struct Device {
    user: String,
    name: &'static str,
    after: String,
    /// The ids that it replayed.
    got: Vec<String>,
}

impl Device {
    fn new(user: &str, name: &'static str) -> Self {
        Self { user: user.to_owned(), name, after: String::new(), got: Vec::new() }
    }

    fn owner(&self) -> Option<Owner> {
        Some(Owner { owner: Some(owner::Owner::User(self.user.clone())) })
    }

    /// Reads and acknowledges up to the end, however often the gateway is gone.
    async fn replay(&mut self, api: &str) {
        let until = Instant::now() + 2 * PATIENCE;
        while let Err(error) = self.try_replay(api).await {
            assert!(Instant::now() < until, "{} cannot replay: {error}", self.user);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_replay(&mut self, api: &str) -> Result<(), tonic::Status> {
        let mut inbox = client(api).await?;
        loop {
            let (owner, after) = (self.owner(), self.after.clone());
            let read = ReadRequest { owner, after, limit: PAGE, ..ReadRequest::default() };
            let page = inbox.read(read).await?.into_inner();
            let more = page.more;
            self.take(page);
            if !self.after.is_empty() {
                let (owner, device) = (self.owner(), self.name.to_owned());
                let cursor = self.after.clone();
                inbox.acknowledge(AcknowledgeRequest { owner, device, cursor }).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn take(&mut self, page: Page) {
        self.got.extend(page.entries.into_iter().map(|entry| entry.id));
        if !page.next.is_empty() {
            self.after = page.next;
        }
    }

    /// Follows the inbox until the gateway is gone, or until it has this many entries.
    async fn follow(&mut self, api: &str, entries: usize) -> Result<(), tonic::Status> {
        let replay = ReplayRequest {
            owner: self.owner(),
            device: self.name.to_owned(),
            after: Some(self.after.clone()),
            follow: true,
            page: PAGE,
            ..ReplayRequest::default()
        };
        let mut pages = client(api).await?.replay(replay).await?.into_inner();
        while self.got.len() < entries {
            let page = pages.message().await?;
            self.take(page.ok_or_else(|| tonic::Status::unavailable("the stream ended"))?);
        }
        Ok(())
    }
}

async fn client(api: &str) -> Result<InboxClient<Channel>, tonic::Status> {
    let channel = Channel::from_shared(format!("http://{api}")).expect("a URI").connect().await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    Ok(InboxClient::new(channel))
}

/// A device follows an inbox through one gateway, which is killed, and goes on through the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_followed_survives_its_gateway() {
    const MESSAGES: usize = 300;
    let topic = kafka().topic("followed", 2).await;
    let store = Store::Restarted(Redis::start().await);
    let apis = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let first = settings(&topic, &store.url(), &apis[0]).start().await;
    let group = first.group().to_owned();
    let second = settings(&topic, &store.url(), &apis[1]).group(&group).start().await;
    let mut history = UserHistory { interrupted: true, ..UserHistory::default() };
    let load = async {
        let mut decided = Vec::new();
        for number in 0..MESSAGES {
            decided.push(kafka().produce_keys(&topic, None, &["ann"], format!("{number}")).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        decided
    };
    let follow = async {
        let mut phone = Device::new("ann", "phone");
        let followed = phone.follow(&apis[0], MESSAGES / 3).await;
        assert!(followed.is_ok(), "{followed:?}");
        first.kill();
        let broken = phone.follow(&apis[0], MESSAGES).await;
        assert!(broken.is_err(), "its gateway was killed");
        let distinct = |phone: &Device| phone.got.iter().collect::<std::collections::BTreeSet<_>>().len();
        while distinct(&phone) < MESSAGES {
            let wanted = phone.got.len() + 1;
            let more = tokio::time::timeout(2 * PATIENCE, phone.follow(&apis[1], wanted)).await;
            more.expect("entries in time").expect("the other gateway serves");
        }
        phone
    };
    let (decided, phone) = tokio::join!(load, follow);
    second.wait_until_settled(&topic).await;
    history.decided.insert("ann".to_owned(), decided);
    history.inbox.insert("ann".to_owned(), store.ids("halley:inbox:ann").await);
    history.replayed.insert(("ann".to_owned(), "phone".to_owned()), phone.got);
    let report = history.check();
    report.assert_exactly_once_in_order();
    assert_eq!(report.stored, MESSAGES);
    let streams = async || second.metric("halley_inbox_replay_streams").await;
    eventually("no open stream", PATIENCE, async || (streams().await == Some(0.0)).then_some(())).await;
}
