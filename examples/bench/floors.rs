//! Floors: programs that do only the indispensable work. Each runs as a child process, with the
//! gateway's allocator, and prints its figures as JSON.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::Args;
use futures_util::future::try_join_all;
use h2::client::{Builder, SendRequest};
use halley::comets::proto::goim::{BroadcastRoomReq, Proto};
use http::{HeaderValue, Request};
use prost::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cpu;
use crate::producer::PARTITIONS;
use crate::rows::{Figure, Figures};

/// Calls before the clock starts.
const WARM_UP: usize = 1000;
/// How long Kafka may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// A bare loop of unary calls with the `h2` crate.
#[derive(Args)]
pub(crate) struct Calls {
    /// Comets, each with a connection.
    #[arg(long = "comet")]
    comets: Vec<SocketAddr>,
    /// Open calls, over all connections.
    #[arg(long)]
    open: usize,
    /// Calls, over all connections.
    #[arg(long)]
    calls: usize,
}

impl Calls {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        runtime()?.block_on(self.measure())
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let mut connections = Connections::default();
        let mut comets = Vec::new();
        for comet in &self.comets {
            comets.push(connections.connect(*comet).await?);
        }
        let body = request("room-000000", &[b'x'; 200]);
        let loops = |calls: usize| {
            let one_loop =
                |at: usize| call_again(comets[at % comets.len()].clone(), body.clone(), calls / self.open);
            (0..self.open).map(one_loop).collect::<Vec<_>>()
        };
        try_join_all(loops(WARM_UP)).await?;
        let (begun, before) = (Instant::now(), cpu::time_of(std::process::id())?);
        try_join_all(loops(self.calls)).await?;
        let spent = cpu::time_of(std::process::id())? - before;
        let calls = (self.calls / self.open * self.open) as f64;
        print(Figures::from([
            (Figure::CpuPerCall, micros(spent) / calls),
            (Figure::CallsPerSecond, calls / begun.elapsed().as_secs_f64()),
        ]))
    }
}

/// One after the other.
async fn call_again(comet: SendRequest<Bytes>, body: Bytes, calls: usize) -> anyhow::Result<()> {
    for _ in 0..calls {
        call(&comet, body.clone()).await?;
    }
    Ok(())
}

/// Connections, which live in tasks of their own.
#[derive(Default)]
struct Connections(JoinSet<()>);

impl Connections {
    async fn connect(&mut self, comet: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
        let stream = TcpStream::connect(comet).await?;
        stream.set_nodelay(true)?;
        let (client, connection) = Builder::new().handshake(stream).await?;
        self.0.spawn(async move { drop(connection.await) });
        Ok(client)
    }
}

/// One unary call, as gRPC speaks it.
async fn call(comet: &SendRequest<Bytes>, body: Bytes) -> anyhow::Result<()> {
    let mut comet = comet.clone().ready().await?;
    let request = Request::post("http://comet/goim.comet.Comet/BroadcastRoom")
        .header("te", HeaderValue::from_static("trailers"))
        .header("content-type", HeaderValue::from_static("application/grpc"))
        .header("user-agent", HeaderValue::from_static("floor"))
        .body(())?;
    let (response, mut stream) = comet.send_request(request, false)?;
    stream.send_data(body, true)?;
    let mut body = response.await?.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.context("the comet sent no trailers")?;
    anyhow::ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "the comet failed");
    Ok(())
}

/// A request with gRPC's prefix.
fn request(room: &str, body: &[u8]) -> Bytes {
    let proto = Proto { ver: 1, op: 4, seq: 0, body: Bytes::copy_from_slice(body) };
    let message = BroadcastRoomReq { room_id: room.to_owned(), proto: Some(proto) };
    let mut buffer = BytesMut::new();
    buffer.put_u8(0);
    buffer.put_u32(message.encoded_len() as u32);
    buffer.put_slice(&message.encode_to_vec());
    buffer.freeze()
}

/// librdkafka reads a topic, and the records are discarded.
#[derive(Args)]
pub(crate) struct Drain {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    records: usize,
}

impl Drain {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let consumer = consumer(&self.brokers, &self.topic)?;
        let mut bytes = next(&consumer)?.payload_len();
        let (begun, before) = (Instant::now(), cpu::time_of(std::process::id())?);
        for _ in 1..self.records {
            bytes += next(&consumer)?.payload_len();
        }
        let spent = cpu::time_of(std::process::id())? - before;
        anyhow::ensure!(bytes > 0, "the records are empty");
        print(Figures::from([
            (Figure::CpuPerMessage, micros(spent) / (self.records - 1) as f64),
            (Figure::MessagesPerSecond, self.records as f64 / begun.elapsed().as_secs_f64()),
        ]))
    }
}

/// Reads a topic, and makes a call for each record.
#[derive(Args)]
pub(crate) struct Direct {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    comet: SocketAddr,
}

impl Direct {
    /// Until it is killed: the comet measures.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let runtime = runtime()?;
        let mut connections = Connections::default();
        let comet = runtime.block_on(connections.connect(self.comet))?;
        let consumer = consumer(&self.brokers, &self.topic)?;
        loop {
            let record = next(&consumer)?;
            // goim's field 7, `msg`, is the last one in the records of the parent process.
            let payload = record.payload().context("a record without a value")?;
            let body = payload.get(payload.len().saturating_sub(200)..).unwrap_or_default();
            runtime.block_on(call(&comet, request("room-000000", body)))?;
        }
    }
}

/// A consumer of all partitions from their beginning, without a group, set up as the gateway's.
fn consumer(brokers: &str, topic: &str) -> anyhow::Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "floor")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.max.messages.kbytes", "16384")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

fn next(consumer: &BaseConsumer) -> anyhow::Result<rdkafka::message::BorrowedMessage<'_>> {
    Ok(consumer.poll(SILENCE).context("Kafka gives no record")??)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print(figures: Figures) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
