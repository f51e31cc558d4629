//! `halley bench`: load against a running gateway, from Kafka to comets.
//!
//! It acts as everything around the gateway: it registers users of rooms of its own at comets of its own,
//! writes messages for the rooms to the gateway's topic, and counts what arrives. What it wrote to Redis is
//! removed at the end, and expires if it is killed; its messages stay in the topic, for rooms that are gone.
//!
//! - `target`: whether this is a place for load. `load`: the messages, and the users who come and go.
//! - `comets`: the fake comets; `streams`: their streams. `ledger`: what is lost, repeated, out of order, and how late.

mod comets;
mod ledger;
mod load;
mod streams;
mod target;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use comets::{BenchComets, CometsConfig};
use ledger::{Delivery, Ledger, PREFIX, Totals};
use load::Sender;

use crate::cli::signals::interrupted;
use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, block_on, print_json, print_lines, usage};
use crate::comets::DeliveryMode;
use crate::config::Config;
use crate::directory::{Registration, Registrations};
use crate::gateway::Storage;
use crate::kafka::Producer;
use crate::message::{CometAddr, RoomId};

/// The longest run, and the most messages of one: the ledger has a bit for each at each comet.
const LONGEST: Duration = Duration::from_secs(3600);
const MOST_MESSAGES: f64 = 50e6;
/// Who comes and goes, at most.
const GUESTS: usize = 200;
/// How long after the planned end of a run its registrations expire, if it was killed.
const LEFT_OVERS: Duration = Duration::from_secs(120);
/// How long nothing may arrive at the end before the rest counts as lost.
const QUIET: Duration = Duration::from_millis(50);

/// How long entries of inboxes are waited for at the end, and how many inboxes are erased together.
const LATE_ENTRIES: Duration = Duration::from_millis(200);
const ERASED_TOGETHER: usize = 64;

/// Arguments of `halley bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// How long messages are sent.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Messages per second, over all rooms.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How many rooms the messages go to, in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rooms: u16,
    /// How many users each room has at each comet.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    users: u16,
    /// How many comets there are. All rooms have users at all of them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=100))]
    comets: u16,
    /// What the comets serve: the calls of the dialect, or streams as well, which the gateway prefers. Default:
    /// streams if `[comets] delivery` is `stream`, else calls.
    #[arg(long)]
    delivery: Option<Delivery>,
    /// How many other users join or leave a room per second.
    #[arg(long, default_value_t = 1.0)]
    churn: f64,
    /// The size of a message's body in bytes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    size: u32,
    /// The topic to write to. Default: the first of `[kafka] topics`.
    #[arg(long)]
    topic: Option<String>,
    /// The address on which the comets listen.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The name or address at which the gateway reaches them. Default: that of --listen.
    #[arg(long)]
    advertise: Option<String>,
    /// How long to wait for the first messages, and for the last ones.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Runs even if Kafka or Redis look like those of real users: not on this machine, or with rooms and
    /// messages of others.
    #[arg(long)]
    yes: bool,
    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let config = args.config.load()?;
    if let Some(mistake) = args.mistake(&config) {
        return usage(mistake);
    }
    block_on(bench(&args, &config))
}

impl Args {
    fn mistake(&self, config: &Config) -> Option<&'static str> {
        let is_number = |number: f64| number.is_finite() && number >= 0.0;
        if !(is_number(self.rate) && self.rate > 0.0 && is_number(self.churn) && self.churn <= 10_000.0) {
            return Some("--rate has to be above 0, and --churn from 0 to 10000");
        }
        if self.duration > LONGEST || self.wait > LONGEST {
            return Some("--duration and --wait may be up to an hour");
        }
        if self.duration.as_secs_f64() * self.rate * f64::from(self.comets) > MOST_MESSAGES {
            return Some("--duration, --rate and --comets make more than 50 million deliveries");
        }
        if u64::from(self.rooms) * u64::from(self.users) * u64::from(self.comets) > 1_000_000 {
            return Some("--rooms, --users and --comets make more than a million users");
        }
        if config.redis.is_memory() {
            return Some("`redis.url` is memory://, which no gateway shares; name the gateway's Redis");
        }
        match (self.delivery, config.comets.delivery) {
            (Some(Delivery::Unary), DeliveryMode::Stream) => {
                return Some(
                    "`[comets] delivery` is `stream`, and --delivery unary has no comet that serves one",
                );
            }
            (Some(Delivery::Stream), DeliveryMode::Unary) => {
                return Some("`[comets] delivery` is `unary`, so the gateway asks no comet for a stream");
            }
            _ => {}
        }
        if self.listen.is_unspecified() && self.advertise.is_none() {
            return Some(
                "with --listen on all addresses, --advertise has to say where the gateway finds the comets",
            );
        }
        None
    }

    /// What the comets serve.
    fn delivery(&self, config: &Config) -> Delivery {
        self.delivery.unwrap_or(match config.comets.delivery {
            DeliveryMode::Stream => Delivery::Stream,
            DeliveryMode::Auto | DeliveryMode::Unary => Delivery::Unary,
        })
    }

    fn advertised(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| match self.listen {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        })
    }
}

/// What a run has shown.
#[derive(Debug, serde::Serialize)]
struct Report {
    #[serde(flatten)]
    totals: Totals,
    /// Messages per second that were sent.
    rate: f64,
    /// From the producer to the comet, in milliseconds.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: f64,
    /// Whether it was stopped before its time.
    interrupted: bool,
    /// What went wrong on the way, if anything.
    problems: Vec<String>,
}

async fn bench(args: &Args, config: &Config) -> anyhow::Result<u8> {
    let topic = args.topic.clone().unwrap_or_else(|| config.kafka.topics[0].clone());
    if topic.starts_with('^') {
        return usage("`kafka.topics` begins with a pattern; name the topic to write to with --topic");
    }
    let storage = Storage::open(config, &mut Registry::default())?;
    let client = storage.redis.clone().context("a benchmark needs Redis")?;
    let redis = client.endpoint().to_owned();
    let expire = args.duration + 2 * args.wait + LEFT_OVERS;
    let registrations = Registrations::new(client, expire);
    let doubts = target::doubts(config, &topic, &registrations, &redis).await?;
    if !doubts.is_empty() && !args.yes {
        return usage(&format!(
            "this does not look like a place for load: {}; pass --yes if it is one",
            doubts.join("; ")
        ));
    }
    let run = fastrand::u32(..);
    let began = Instant::now();
    let ledger = Arc::new(Mutex::new(Ledger::new(usize::from(args.comets), usize::from(args.rooms))));
    let advertised = args.advertised();
    let kind = CometsConfig {
        count: usize::from(args.comets),
        listen: args.listen,
        advertised: &advertised,
        dialect: config.comets.dialect,
        delivery: args.delivery(config),
    };
    let comets = BenchComets::start(kind, (run, began), &ledger).await?;
    let rooms: Vec<RoomId> = (0..args.rooms).map(|room| format!("{PREFIX}{run:08x}-{room}").into()).collect();
    let (residents, guests) = users(args, run, &rooms, &comets.addresses);
    let sender = Sender {
        producer: Producer::new(&config.kafka)?,
        topic,
        rooms,
        size: args.size as usize,
        run,
        began,
        ledger: Arc::clone(&ledger),
    };
    let work = async {
        registrations.join(&residents).await.context(
            "cannot register users in Redis, as comets do: its user must be allowed to write `room:connections:*`, `connection:info:*` and `user:online:*`",
        )?;
        measure(args, &sender, &registrations, &guests).await
    };
    let (done, interrupted) = tokio::select! {
        done = work => (done.map(Some), false),
        _ = interrupted() => (Ok(None), true),
    };
    let cleaned = clean_up(&registrations, &storage, residents.iter().chain(&guests)).await;
    let (rate, mut problems) = done?.unwrap_or_default();
    problems.extend(cleaned.err().map(|error| format!("{error:#}; what is left expires within {expire:?}")));
    let report = report(&ledger.lock(), rate, interrupted, problems);
    print(args, &report)?;
    let Totals { lost, repeated, reordered, .. } = report.totals;
    let is_fine = lost + repeated + reordered == 0 && report.problems.is_empty();
    Ok(if is_fine { EXIT_SUCCESS } else { EXIT_FAILURE })
}

/// Users who stay, in each room at each comet; and others who come and go.
fn users(
    args: &Args,
    run: u32,
    rooms: &[RoomId],
    comets: &[CometAddr],
) -> (Vec<Registration>, Vec<Registration>) {
    let of = |name: String, room: &RoomId, comet: &CometAddr| Registration {
        room: room.clone(),
        connection: format!("{PREFIX}{run:08x}-c-{name}").into(),
        user: format!("{PREFIX}{run:08x}-u-{name}").into(),
        comet: comet.clone(),
    };
    let mut residents = Vec::new();
    for (at, room) in rooms.iter().enumerate() {
        for (number, comet) in comets.iter().enumerate() {
            residents.extend((0..args.users).map(|user| of(format!("{at}-{number}-{user}"), room, comet)));
        }
    }
    let guest = |at: usize| of(format!("guest-{at}"), &rooms[at % rooms.len()], &comets[at % comets.len()]);
    let guests = if args.churn > 0.0 { GUESTS } else { 0 };
    (residents, (0..guests).map(guest).collect())
}

/// Sends, and waits for what arrives. Returns the rate that was reached, and what went wrong.
async fn measure(
    args: &Args,
    sender: &Sender,
    registrations: &Registrations,
    guests: &[Registration],
) -> anyhow::Result<(f64, Vec<String>)> {
    sender.send_to_each().await.context("Kafka did not take the first messages")?;
    let first = wait_for_all(&sender.ledger, args.wait).await;
    anyhow::ensure!(
        first.received > 0,
        "nothing arrived within {:?}: check that a gateway runs with this configuration (brokers, topics, redis), and may connect to {} (`[comets] allow`)",
        args.wait,
        args.advertised(),
    );
    sender.ledger.lock().forget_latencies();
    let (before, since) = (sender.ledger.lock().totals().sent, Instant::now());
    let mut problems = Vec::new();
    let sending = sender.run(args.rate, args.duration);
    let churning = load::churn(registrations, guests, args.churn);
    tokio::pin!(sending, churning);
    let mut is_churning = true;
    let failed = loop {
        tokio::select! {
            failed = &mut sending => break failed,
            error = &mut churning, if is_churning => {
                is_churning = false;
                problems.extend(error.map(|error| format!("users no longer come and go: {error}")));
            }
        }
    };
    problems.extend(failed.map(|error| format!("Kafka did not confirm messages: {error}")));
    let took = since.elapsed();
    let totals = wait_for_all(&sender.ledger, args.wait).await;
    Ok(((totals.sent - before) as f64 / took.as_secs_f64(), problems))
}

/// Waits until everything has arrived, for up to this long.
async fn wait_for_all(ledger: &Mutex<Ledger>, at_most: Duration) -> Totals {
    let until = Instant::now() + at_most;
    loop {
        let totals = ledger.lock().totals();
        if totals.lost == 0 || Instant::now() >= until {
            return totals;
        }
        tokio::time::sleep(QUIET).await;
    }
}

/// Removes what was registered, and what was stored for these users.
async fn clean_up<'a>(
    registrations: &Registrations,
    storage: &Storage,
    users: impl Iterator<Item = &'a Registration>,
) -> anyhow::Result<()> {
    let users: Vec<Registration> = users.cloned().collect();
    registrations.leave(&users).await.context("cannot remove the users from Redis")?;
    // What the gateway still has for those who were away.
    tokio::time::sleep(LATE_ENTRIES).await;
    let erase = |registration: &'_ Registration| {
        let user = registration.user.clone();
        async move { storage.inbox_reader.erase(&user).await.map(drop) }
    };
    let mut erasing = futures_util::stream::iter(users.iter().map(erase)).buffer_unordered(ERASED_TOGETHER);
    while let Some(erased) = erasing.next().await {
        erased.context("cannot erase the users' inboxes")?;
    }
    Ok(())
}

fn report(ledger: &Ledger, rate: f64, interrupted: bool, problems: Vec<String>) -> Report {
    let ms = |latency: Duration| (latency.as_secs_f64() * 1e5).round() / 100.0;
    let latencies = ledger.latencies();
    Report {
        totals: ledger.totals(),
        rate: (rate * 10.0).round() / 10.0,
        p50_ms: latencies.quantile(0.5).map(ms),
        p99_ms: latencies.quantile(0.99).map(ms),
        max_ms: ms(latencies.longest()),
        interrupted,
        problems,
    }
}

fn print(args: &Args, report: &Report) -> anyhow::Result<()> {
    if args.json {
        print_json(&serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let Totals { sent, unconfirmed, expected, received, lost, repeated, reordered, streamed } = report.totals;
    let ms = |latency: Option<f64>| latency.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let mut lines = vec![
        format!("sent       {sent} messages, {}/s; {unconfirmed} not confirmed by Kafka", report.rate),
        format!("received   {received} of {expected} at {} comets, {streamed} by streams", args.comets),
        format!("lost       {lost}"),
        format!("repeated   {repeated}"),
        format!("reordered  {reordered}"),
        format!(
            "latency    p50 {}, p99 {}, longest {}, from the producer to the comet",
            ms(report.p50_ms),
            ms(report.p99_ms),
            ms(Some(report.max_ms))
        ),
    ];
    lines.extend(report.interrupted.then(|| "interrupted: what was on its way counts as lost".to_owned()));
    lines.extend(report.problems.iter().map(|problem| format!("problem    {problem}")));
    print_lines(lines);
    Ok(())
}
