//! Runs one arm: a gateway under load, or a floor.
//!
//! A gateway's CPU time is measured from the first record that it reads to the last message that reaches a
//! comet, so that its start does not count.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::child::ChildProcess;
use crate::gateway::Gateway;
use crate::joins::Churn;
use crate::producer::{Producer, now};
use crate::rows::{Arm, Figure, Figures, Load, Scenario};
use crate::servers::folder;
use crate::window;
use crate::world::World;

/// An arm fails after this long without progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the comets' counters are read.
const LOOK: Duration = Duration::from_millis(1);
/// The records that a gateway has read.
const RECORDS: &str = "halley_records_consumed_total";
/// The interval between live messages: 1,000 per second.
const LIVE_PACE: Duration = Duration::from_millis(1);
/// How often rooms were read.
const READINGS: &str = "halley_redis_call_duration_seconds_count{operation=\"get_room_connections\"}";
/// The interval between lone messages.
const LONE_PACE: Duration = Duration::from_millis(20);
/// The memory counts as full if it has not changed for this long.
const SETTLED: Duration = Duration::from_millis(500);

/// Runs an arm once.
///
/// # Errors
/// When it does not finish.
pub(crate) async fn run(world: &mut World, arm: &Arm) -> anyhow::Result<Figures> {
    match arm {
        Arm::Gateway(scenario) => match scenario.load {
            Load::Backlog { .. } => backlog(world, scenario).await,
            Load::Live => live(world, scenario).await,
            Load::Lone => lone(world, scenario).await,
            Load::Held => held(world, scenario).await,
            Load::Swaps => swaps(world, scenario).await,
        },
        Arm::Calls { comets, open } => {
            world.comets.reset(Duration::ZERO, false);
            let mut args = vec!["floor-calls".to_owned()];
            args.extend(["--open".to_owned(), open.to_string(), "--calls".to_owned()]);
            args.push(world.sizes.calls.to_string());
            for comet in world.comets.addresses(*comets) {
                args.extend(["--comet".to_owned(), comet.to_string()]);
            }
            floor(&args).await
        }
        Arm::Drain(scenario) => {
            let (records, topic) = topic_of(world, scenario).await?;
            let args = ["floor-drain", "--brokers", world.brokers(), "--topic", &topic, "--records"];
            let mut args: Vec<String> = args.map(str::to_owned).to_vec();
            args.push(records.to_string());
            floor(&args).await
        }
        Arm::Direct => direct(world).await,
    }
}

/// Runs a floor to its end.
async fn floor(args: &[String]) -> anyhow::Result<Figures> {
    let mut process = start_floor(args)?;
    let status = process.wait(STALL_TIMEOUT * 4).await?.context("the floor does not end")?;
    let log = process.log();
    anyhow::ensure!(status.success(), "the floor failed: {log}");
    serde_json::from_str(log.trim()).with_context(|| format!("the floor said: {log}"))
}

fn start_floor(args: &[String]) -> anyhow::Result<ChildProcess> {
    let program = std::env::current_exe()?;
    Ok(ChildProcess::start(&program.display().to_string(), args, folder("floor")?)?)
}

/// The number of records of a scenario's backlog, and their topic.
async fn topic_of(world: &mut World, scenario: &Scenario) -> anyhow::Result<(usize, String)> {
    let Load::Backlog { times, one_of } = scenario.load else { anyhow::bail!("this load has no backlog") };
    // With many rooms, every room has messages.
    let records = (world.sizes.backlog * times / one_of).max(scenario.rooms.min(world.sizes.backlog));
    Ok((records, world.backlog(scenario.rooms, records).await?))
}

/// The counters at one point in time.
struct Sample {
    at: Instant,
    cpu: Duration,
    calls: u64,
    messages: u64,
}

impl Sample {
    fn take(world: &World, gateway: &Gateway) -> anyhow::Result<Self> {
        let (calls, messages) = (world.comets.calls(), world.comets.messages());
        Ok(Self { at: Instant::now(), cpu: gateway.cpu()?, calls, messages })
    }

    /// The messages and calls since then, with this number of comets.
    fn until(&self, end: &Self, comets: usize) -> Figures {
        let cpu = (end.cpu - self.cpu).as_secs_f64() * 1e6;
        let calls = (end.calls - self.calls).max(1) as f64;
        let deliveries = (end.messages - self.messages).max(1) as f64;
        let messages = deliveries / comets as f64;
        Figures::from([
            (Figure::CpuPerMessage, cpu / messages),
            (Figure::CpuPerCall, cpu / calls),
            (Figure::CallsPer100, 100.0 * calls / deliveries),
            (Figure::DeliveriesPerCpuSecond, 1e6 * deliveries / cpu),
            (Figure::MessagesPerSecond, messages / (end.at - self.at).as_secs_f64()),
        ])
    }
}

/// The interval over which throughput is compared.
const TENTH: Duration = Duration::from_millis(100);

/// Swaps policies while live messages flow, and counts what arrives in each tenth of a second.
async fn swaps(world: &mut World, scenario: &Scenario) -> anyhow::Result<Figures> {
    let (mut gateway, mut producer) = warm(world, scenario).await?;
    let (sent, mut counts) = count_while_swapping(world, scenario, &gateway, &mut producer).await?;
    producer.flush()?;
    wait_for(world, &mut gateway, sent as u64).await?;
    counts.sort_by(f64::total_cmp);
    let per_second = |at: usize| counts.get(at).copied().unwrap_or(f64::NAN) / TENTH.as_secs_f64();
    let mut figures = disorder(world);
    figures
        .extend([(Figure::WorstTenth, per_second(0)), (Figure::MedianTenth, per_second(counts.len() / 2))]);
    Ok(figures)
}

/// Sends live messages until all swaps are done. Returns how many, and how many arrived in each tenth of a
/// second.
async fn count_while_swapping(
    world: &World,
    scenario: &Scenario,
    gateway: &Gateway,
    producer: &mut Producer,
) -> anyhow::Result<(usize, Vec<f64>)> {
    let (swapper, swaps) = (gateway.swapper(), world.sizes.swaps);
    // It blocks, and must not hold up the messages.
    let mut swapping = tokio::task::spawn_blocking(move || (0..swaps).try_for_each(|at| swapper.swap(at)));
    let (mut pace, mut tenths) = (interval(LIVE_PACE), interval(TENTH));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    tenths.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut last, mut counts) = (0, None, Vec::new());
    loop {
        tokio::select! {
            biased;
            swapped = &mut swapping => break swapped?.with_context(|| gateway.last_words())?,
            _ = tenths.tick() => {
                let (arrived, at) = (world.comets.messages(), Instant::now());
                let since = |(last, since): (u64, Instant)| {
                    // A tick that comes late is of a longer time.
                    (arrived - last) as f64 * TENTH.as_secs_f64() / (at - since).as_secs_f64()
                };
                counts.extend(last.replace((arrived, at)).map(since));
            }
            _ = pace.tick() => {
                producer.send(sent % scenario.rooms)?;
                sent += 1;
            }
        }
    }
    // The first one may have begun before the messages.
    counts.drain(..counts.len().min(1));
    Ok((sent, counts))
}

/// Waits until the comets have received this many messages.
async fn wait_for(world: &World, gateway: &mut Gateway, messages: u64) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = world.comets.messages();
        if now >= messages {
            return Ok(());
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        gateway.check()?;
        if since.elapsed() > STALL_TIMEOUT {
            let words = gateway.last_words();
            anyhow::bail!(
                "{now} of {messages} messages arrived, and none for {STALL_TIMEOUT:?}; its log: {words}"
            );
        }
        sleep(LOOK).await;
    }
}

async fn backlog(world: &mut World, scenario: &Scenario) -> anyhow::Result<Figures> {
    let (records, topic) = topic_of(world, scenario).await?;
    let mut gateway = world.start_gateway(scenario, &topic).await?;
    let until = Instant::now() + STALL_TIMEOUT;
    // Its metrics are served a moment after its start.
    while gateway.metric(RECORDS).map_or(true, |records| records == 0.0) {
        gateway.check()?;
        anyhow::ensure!(Instant::now() < until, "nothing is read; its log: {}", gateway.last_words());
        sleep(LOOK).await;
    }
    let begin = Sample::take(world, &gateway)?;
    wait_for(world, &mut gateway, (records * scenario.comets) as u64).await?;
    let end = Sample::take(world, &gateway)?;
    let mut figures = begin.until(&end, scenario.comets);
    figures.extend(disorder(world));
    Ok(figures)
}

/// A gateway that has delivered a message to each of its rooms, and the producer.
async fn warm(world: &mut World, scenario: &Scenario) -> anyhow::Result<(Gateway, Producer)> {
    let mut producer = world.producer(Duration::ZERO).await?;
    let topic = producer.topic().to_owned();
    let mut gateway = world.start_gateway(scenario, &topic).await?;
    for room in 0..scenario.rooms {
        producer.send(room)?;
    }
    producer.flush()?;
    wait_for(world, &mut gateway, (scenario.rooms * scenario.comets) as u64).await?;
    // Longer than a merge window, so that no call of the warm-up is counted.
    sleep(window::WINDOW * 4).await;
    world.comets.forget();
    Ok((gateway, producer))
}

async fn live(world: &mut World, scenario: &Scenario) -> anyhow::Result<Figures> {
    let (mut gateway, mut producer) = warm(world, scenario).await?;
    let messages = world.sizes.live;
    let mut rooms = fastrand::Rng::with_seed(1);
    let mut sent = Vec::with_capacity(messages);
    let comet = *world.comets.addresses(1).first().context("there is a comet")?;
    let churn = Churn::start(&world.redis(), scenario, comet).await?;
    let (read, redis) = (gateway.metric(READINGS)?, churn.cpu_of_redis().await?);
    let begin = Sample::take(world, &gateway)?;
    let mut pace = interval(LIVE_PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..messages {
        pace.tick().await;
        let room = rooms.usize(0..scenario.rooms);
        sent.push((room, now()));
        producer.send(room)?;
    }
    producer.flush()?;
    wait_for(world, &mut gateway, (messages * scenario.comets) as u64).await?;
    let end = Sample::take(world, &gateway)?;
    let (read, redis) = (gateway.metric(READINGS)? - read, churn.cpu_of_redis().await? - redis);
    let mut figures = begin.until(&end, scenario.comets);
    figures.insert(Figure::ReadingsPer100, 100.0 * read / messages as f64);
    figures.insert(Figure::RedisCpuPerMessage, redis.as_secs_f64() * 1e6 / messages as f64);
    let allowed = 100.0 * window::calls(&sent) as f64 / messages as f64;
    figures.insert(Figure::AllowedCallsPer100, allowed);
    figures.extend(disorder(world));
    figures.extend(latencies(world));
    Ok(figures)
}

/// The repeated and the skipped messages of the comets.
fn disorder(world: &World) -> Figures {
    let (again, skipped) = world.comets.disorder();
    Figures::from([(Figure::Again, again as f64), (Figure::Skipped, skipped as f64)])
}

/// The latencies of the messages that the comets have received.
fn latencies(world: &World) -> Figures {
    let all = world.comets.latencies();
    let at =
        |share: usize| all.get(all.len() * share / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
    Figures::from([(Figure::LatencyP50, at(50)), (Figure::LatencyP99, at(99))])
}

async fn lone(world: &mut World, scenario: &Scenario) -> anyhow::Result<Figures> {
    let (mut gateway, mut producer) = warm(world, scenario).await?;
    let messages = world.sizes.lone;
    send_apart(&mut producer, messages).await?;
    wait_for(world, &mut gateway, messages as u64).await?;
    Ok(latencies(world))
}

/// Sends messages to the first room, at intervals.
async fn send_apart(producer: &mut Producer, messages: usize) -> anyhow::Result<()> {
    for _ in 0..messages {
        sleep(LONE_PACE).await;
        producer.send(0)?;
        producer.flush()?;
    }
    Ok(())
}

async fn direct(world: &mut World) -> anyhow::Result<Figures> {
    world.comets.reset(Duration::ZERO, false);
    let mut producer = world.producer(Duration::ZERO).await?;
    let comet = world.comets.addresses(1)[0].to_string();
    let args = ["floor-direct", "--brokers", world.brokers(), "--topic", producer.topic(), "--comet", &comet];
    let _process = start_floor(&args.map(str::to_owned))?;
    producer.send(0)?;
    wait_until(world, 1).await?;
    world.comets.forget();
    send_apart(&mut producer, world.sizes.lone).await?;
    wait_until(world, world.sizes.lone as u64).await?;
    Ok(latencies(world))
}

async fn wait_until(world: &World, messages: u64) -> anyhow::Result<()> {
    let until = Instant::now() + STALL_TIMEOUT;
    while world.comets.messages() < messages {
        anyhow::ensure!(Instant::now() < until, "the floor does not call");
        sleep(LOOK).await;
    }
    Ok(())
}

/// Fills a gateway whose comet does not answer, and measures its memory before the comet counts as
/// unreachable.
async fn held(world: &mut World, scenario: &Scenario) -> anyhow::Result<Figures> {
    let (mut gateway, mut producer) = warm(world, scenario).await?;
    sleep(SETTLED).await;
    let before = gateway.resident()?;
    world.comets.hold();
    let messages = world.sizes.held;
    for message in 0..messages {
        producer.send(message % scenario.rooms)?;
    }
    producer.flush()?;
    let (mut last, mut since) = (0.0, Instant::now());
    loop {
        let in_flight = gateway.metric("halley_unsettled_records")?;
        gateway.check()?;
        if in_flight >= messages as f64 && since.elapsed() > SETTLED {
            break;
        }
        if in_flight != last {
            (last, since) = (in_flight, Instant::now());
        }
        let words = gateway.last_words();
        anyhow::ensure!(
            since.elapsed() < STALL_TIMEOUT,
            "only {in_flight} of {messages} are in flight; {words}"
        );
        sleep(SETTLED / 5).await;
    }
    let taken = gateway.resident()?.saturating_sub(before) as f64;
    Ok(Figures::from([(Figure::MemoryPerMessage, taken / messages as f64)]))
}
