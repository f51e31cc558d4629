//! Puts `PushMsg` records on Kafka, as a `logic` service does.
//!
//! ```text
//! cargo run --example produce -- room video_123 "hello"
//! cargo run --example produce -- keys alice conn-7 -- "only for you"
//! cargo run --example produce -- everyone "maintenance at noon" --op 100
//! cargo run --example produce -- room video_123 "message {number}" --count 1000 --rate 50
//! ```
//!
//! Each line that it prints is a record that the broker has confirmed, by the id that Halley
//! gives the message: `<topic>/<partition>/<offset>/<fingerprint>`. A room's records carry the
//! room as their key, so that they share a partition and stay in order.

#![allow(clippy::print_stdout, reason = "a command-line tool prints its results")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use halley::message::{Audience, Origin, Record, encode};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::{MissedTickBehavior, interval};

/// Records that may be on their way at a time.
const IN_FLIGHT: usize = 1000;

/// Puts messages on Kafka for Halley to deliver.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    to: To,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Kafka's brokers, separated by commas.
    #[arg(long, global = true, default_value = "localhost:9092")]
    brokers: String,
    /// The topic that the gateway reads.
    #[arg(long, global = true, default_value = "push")]
    topic: String,
    /// The protocol operation that clients receive.
    #[arg(long, global = true, default_value_t = 4)]
    op: i32,
    /// A header of the record; may be given several times.
    #[arg(long = "header", global = true, value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// How many messages; `{number}` in the body becomes the message's number.
    #[arg(long, global = true, default_value_t = 1)]
    count: u64,
    /// Messages per second; as fast as the broker takes them when not given.
    #[arg(long, global = true, value_parser = parse_rate)]
    rate: Option<f64>,
    /// Print only the summary.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum To {
    /// To everyone in a room.
    Room {
        /// The room's id, such as video_123.
        room: String,
        /// The body of the message.
        body: String,
    },
    /// To connections or users: `keys alice conn-7 -- "hello"`.
    Keys {
        /// Connection ids or user ids.
        #[arg(required = true)]
        keys: Vec<String>,
        /// The comet that holds the keys: an address, or a name in [comets] addresses.
        #[arg(long)]
        server: Option<String>,
        /// The body, after `--`.
        #[arg(last = true, required = true)]
        body: String,
    },
    /// To everyone who is connected.
    Everyone {
        /// The body of the message.
        body: String,
        /// Messages per second over all comets; 0 means no limit.
        #[arg(long, default_value_t = 0)]
        speed: i32,
    },
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a rate is a number, such as 50 or 0.5")?;
    // Below, an interval would be zero or longer than a day.
    if (0.00002..=1_000_000.0).contains(&rate) { Ok(rate) } else { Err("between 0.00002 and 1000000".into()) }
}

impl To {
    /// Whom it is for, the record's key, and the body.
    fn split(self) -> (Audience, Option<String>, String) {
        match self {
            To::Room { room, body } => (Audience::Room(room.as_str().into()), Some(room), body),
            To::Keys { keys, server, body } => {
                let key = keys.first().cloned();
                let keys = keys.into_iter().map(Arc::from).collect();
                (Audience::Keys { server: server.map(Arc::from), keys }, key, body)
            }
            To::Everyone { body, speed } => (Audience::Everyone { speed }, None, body),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { to, options } = Arguments::parse();
    let (audience, key, body) = to.split();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &options.brokers)
        .set("message.timeout.ms", "10000")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random") // what Java's producers do
        .create()
        .context("this is not a Kafka configuration")?;

    let pace = options.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut pace = pace.map(interval);
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let start = Instant::now();
    let mut sent = 0;
    let mut on_their_way = FuturesOrdered::new();
    while sent < options.count || !on_their_way.is_empty() {
        let room_for_more = sent < options.count && on_their_way.len() < IN_FLIGHT;
        tokio::select! {
            Some(id) = on_their_way.next() => {
                let id: String = id?;
                if !options.quiet {
                    println!("{id}");
                }
            }
            () = tick(&mut pace), if room_for_more => {
                sent += 1;
                let body = body.replace("{number}", &sent.to_string());
                let value = encode(&audience, options.op, body.as_bytes());
                on_their_way.push_back(put(&producer, &options, key.as_deref(), value)?);
            }
        }
    }
    if options.count > 1 {
        println!("{sent} messages in {:.1?}", start.elapsed());
    }
    Ok(())
}

async fn tick(pace: &mut Option<tokio::time::Interval>) {
    if let Some(pace) = pace {
        pace.tick().await;
    }
}

/// Hands one record to the producer at once; the future is the broker's confirmation.
fn put(
    producer: &FutureProducer,
    options: &Options,
    key: Option<&str>,
    value: Bytes,
) -> anyhow::Result<impl Future<Output = anyhow::Result<String>> + use<>> {
    let mut headers = OwnedHeaders::new();
    for (name, value) in &options.headers {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    let record = FutureRecord { key, payload: Some(&*value), ..FutureRecord::to(&options.topic) };
    let record = if options.headers.is_empty() { record } else { record.headers(headers) };
    let confirmation = producer.send_result(record).map_err(|(error, _)| explain(&error, options))?;
    let (topic, brokers) = (options.topic.clone(), options.brokers.clone());
    let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    Ok(async move {
        let confirmed = confirmation.await.context("the producer has gone")?;
        let at = confirmed.map_err(|(error, _)| explain_for(&error, &topic, &brokers))?;
        let origin = Origin { topic: topic.into(), partition: at.partition, offset: at.offset };
        let (timestamp_ms, value) = (at.timestamp.to_millis(), Some(value));
        Ok(Record { origin, timestamp_ms, key, value, headers: Vec::new(), trusted: false }
            .message_id()
            .to_string())
    })
}

fn explain(error: &KafkaError, options: &Options) -> anyhow::Error {
    explain_for(error, &options.topic, &options.brokers)
}

fn explain_for(error: &KafkaError, topic: &str, brokers: &str) -> anyhow::Error {
    let remedy = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::AllBrokersDown) => {
            format!("no broker at {brokers} took it within 10 s; is Kafka running there? (--brokers)")
        }
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
            format!("make the topic `{topic}` first, or name another with --topic")
        }
        Some(RDKafkaErrorCode::QueueFull) => "the producer's queue is full; use --rate".to_owned(),
        _ => format!("sending to the topic `{topic}` at {brokers}"),
    };
    anyhow::anyhow!("not delivered: {error}: {remedy}")
}
