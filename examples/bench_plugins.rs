//! The cost of policies: calls through WebAssembly compared with the same Rust code called natively,
//! in one run. Prints tables; `make bench-plugins` builds what it needs.
//!
//! It times a worker's chain, called as in the gateway. The compared variants alternate, so that a
//! busy machine slows all of them; figures are medians, with the best repeat next to them.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use halley::membership::{Connection, CurrentPlacement, Grouping, Membership};
use halley::message::{Audience, Message, Origin, Record};
use halley::policy::{Chain, PluginConfig, Policies};
use halley::wasm::{Runtime, RuntimeConfig};
use prometheus_client::registry::Registry;

#[path = "../tests/guests/bench-filter/src/rule.rs"]
mod filter_rule;
#[path = "../tests/guests/bench-grouping/src/rule.rs"]
mod grouping_rule;

/// The allocator of the gateway's binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CHAINS: [usize; 3] = [1, 3, 10];
const BATCHES: [usize; 4] = [1, 16, 64, 256];
/// Messages of one repeat: several batches, since one of them is short for a clock.
const MESSAGES: usize = 512;
const REPEATS: usize = 300;
const WORDS: [&str; 4] = ["spam", "spammer", "casino", "lottery"];
const CONNECTIONS: usize = 10_000;
const COMETS: usize = 8;
const RESTARTS: usize = 5;

fn main() -> anyhow::Result<()> {
    filters()?;
    no_filter()?;
    grouping()?;
    restart()
}

/// The words that a measured filter looks for; none means capital letters.
type Wanted = &'static [&'static str];

/// Chains of filters that read bodies of 200 bytes.
fn filters() -> anyhow::Result<()> {
    println!("A filter that counts capital letters in bodies of 200 bytes, ns per message:\n");
    filter_table(&[], &CHAINS, &BATCHES)?;
    println!("\nA filter that searches them for words, byte by byte, ns per message:\n");
    filter_table(&WORDS, &[1], &[64])
}

fn filter_table(wanted: Wanted, chains: &[usize], batches: &[usize]) -> anyhow::Result<()> {
    println!("| chain | batch | wasm | native | ratio | above native, a plugin | at best |");
    println!("|------:|------:|-----:|-------:|------:|-----------------------:|--------:|");
    let messages = messages();
    for length in chains {
        let mut chain = chain(&vec!["bench_filter"; *length], wanted)?;
        for batch in batches {
            let (mut wasm, mut native) = (Times::default(), Times::default());
            for _ in 0..REPEATS {
                wasm.add(through(&mut chain, &messages, *batch)?);
                native.add(natively(*length, wanted, &messages, *batch));
            }
            let plugins = *length as f64;
            println!(
                "| {length} | {batch} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |",
                wasm.median(),
                native.median(),
                wasm.median() / native.median(),
                (wasm.median() - native.median()) / plugins,
                (wasm.best() - native.best()) / plugins,
            );
        }
    }
    Ok(())
}

/// The cost of plugins that export no `filter`.
fn no_filter() -> anyhow::Result<()> {
    let messages = messages();
    let mut chains = [
        ("no plugin", chain(&[], &[])?, Times::default()),
        ("10 plugins without `filter`", chain(&["bench_grouping"; 10], &[])?, Times::default()),
        ("1 filter", chain(&["bench_filter"], &[])?, Times::default()),
        (
            "1 filter, 9 plugins without",
            chain(&[&["bench_filter"][..], &["bench_grouping"; 9]].concat(), &[])?,
            Times::default(),
        ),
    ];
    for _ in 0..REPEATS {
        for (_, chain, times) in &mut chains {
            times.add(through(chain, &messages, 64)?);
        }
    }
    println!("\nWhat a plugin without `filter` costs a batch of 64, ns per message:\n");
    println!("| chain | ns | at best |\n|-------|---:|--------:|");
    for (name, _, times) in &chains {
        println!("| {name} | {:.1} | {:.1} |", times.median(), times.best());
    }
    Ok(())
}

/// A room of many connections through one grouping.
fn grouping() -> anyhow::Result<()> {
    let membership = Arc::new(membership());
    let mut chain = chain(&["bench_grouping"], &[])?;
    let (mut wasm, mut native) = (Times::default(), Times::default());
    let mut moved = 0;
    for _ in 0..REPEATS {
        let mut room = Grouping::new(Arc::clone(&membership));
        let begun = Instant::now();
        chain.regroup(&"video_1".into(), &mut room)?;
        wasm.add(nanos(begun, CONNECTIONS));
        let left_out = room.members().filter(|(_, place)| *place == CurrentPlacement::Skipped).count();
        let begun = Instant::now();
        let natively = membership.members.iter().filter(|member| {
            let user = member.user.as_ref().map_or("", |user| user.as_str());
            grouping_rule::is_left_out(member.id.as_str(), user, member.comet, member.online)
        });
        moved = black_box(natively.count());
        native.add(nanos(begun, CONNECTIONS));
        anyhow::ensure!(left_out == moved, "{left_out} connections were left out, natively {moved}");
    }
    println!("\nRegrouping a room of {CONNECTIONS} connections, {moved} of which move, ns per connection:\n");
    println!("| wasm | native | ratio | at best |\n|-----:|-------:|------:|--------:|");
    let ratio = wasm.median() / native.median();
    println!("| {:.0} | {:.1} | {ratio:.1} | {:.0} |", wasm.median(), native.median(), wasm.best());
    Ok(())
}

/// A start with ten plugins, each with code of its own, with and without the folder of compiled
/// code: to the moment when they decide.
fn restart() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let plugins = ten_plugins(folder.path())?;
    let compiled = Some(folder.path().join("compiled"));
    let mut starts = [
        ("without a folder of compiled code", None, Times::default()),
        ("with one", compiled.clone(), Times::default()),
    ];
    let first = start(&plugins, compiled)?;
    for _ in 0..RESTARTS {
        for (_, compiled, times) in &mut starts {
            times.add(start(&plugins, compiled.clone())?.as_secs_f64() * 1000.0);
        }
    }
    println!(
        "\nA start with ten plugins (keyword-filter), ms:\n\n| start | ms | at best |\n|-------|---:|--------:|"
    );
    for (name, _, times) in &starts {
        println!("| {name} | {:.0} | {:.0} |", times.median(), times.best());
    }
    println!("| the first one that fills it | {:.0} | |", first.as_secs_f64() * 1000.0);
    Ok(())
}

fn start(plugins: &[PluginConfig], compiled: Option<PathBuf>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let config = RuntimeConfig { compiled, ..RuntimeConfig::default() };
    let runtime = Runtime::with(&mut Registry::default(), config)?;
    black_box(Policies::start(runtime, plugins)?);
    Ok(begun.elapsed())
}

/// One of the bundled policies ten times over, each with a section that makes it another file.
fn ten_plugins(folder: &Path) -> anyhow::Result<Vec<PluginConfig>> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist/keyword_filter.wasm");
    let module = std::fs::read(&bundled).with_context(|| format!("{} is missing", bundled.display()))?;
    let mut plugins = Vec::new();
    for number in 0..10_u8 {
        let file = folder.join(format!("{number}.wasm"));
        let name = *b"number";
        let length = (name.len() + 2) as u8;
        // A custom section: 0, its length, the length of its name, its name, its content.
        let section = [&[0, length, name.len() as u8][..], &name, &[number]].concat();
        std::fs::write(&file, [&module[..], &section].concat())?;
        plugins.push(plugin(&format!("plugin-{number}"), file, &WORDS));
    }
    Ok(plugins)
}

/// One repeat through the chain: ns per message.
fn through(chain: &mut Chain, messages: &[Message], batch: usize) -> anyhow::Result<f64> {
    let batches: Vec<Vec<Message>> = messages.chunks(batch).map(<[Message]>::to_vec).collect();
    let mut decided = Vec::with_capacity(batches.len());
    let begun = Instant::now();
    for batch in batches {
        decided.push(chain.filter("push", 0, batch)?);
    }
    let taken = nanos(begun, messages.len());
    let failed = decided.iter().flatten().find(|one| !one.trail.is_empty());
    anyhow::ensure!(failed.is_none(), "a message did not pass: {failed:?}");
    Ok(taken)
}

/// The same decisions without the WebAssembly boundary: ns per message.
fn natively(plugins: usize, wanted: Wanted, messages: &[Message], batch: usize) -> f64 {
    let mut decided = Vec::with_capacity(messages.len() / batch * plugins);
    let words = black_box(wanted);
    let begun = Instant::now();
    for batch in messages.chunks(batch) {
        for _ in 0..plugins {
            let verdict = |message: &Message| match words.is_empty() {
                true => filter_rule::shouts(&message.body),
                false => filter_rule::holds_a_word(&message.body, words),
            };
            decided.push(batch.iter().map(verdict).collect::<Vec<bool>>());
        }
    }
    let taken = nanos(begun, messages.len());
    black_box(decided);
    taken
}

fn nanos(begun: Instant, items: usize) -> f64 {
    begun.elapsed().as_nanos() as f64 / items as f64
}

/// A chain of these guests, started.
fn chain(guests: &[&str], wanted: Wanted) -> anyhow::Result<Chain> {
    let plugins: Vec<PluginConfig> = guests
        .iter()
        .enumerate()
        .map(|(at, guest)| plugin(&format!("{guest}-{at}"), file(guest), wanted))
        .collect();
    let policies = Policies::start(Runtime::new(&mut Registry::default())?, &plugins)?;
    Ok(policies.current().chain())
}

fn plugin(name: &str, file: PathBuf, wanted: Wanted) -> PluginConfig {
    PluginConfig {
        // A machine that is busy must not look like a slow plugin.
        deadline: Duration::from_secs(5),
        config: serde_json::json!({ "words": wanted }),
        ..PluginConfig::new(name, file)
    }
}

fn file(guest: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/dist");
    folder.join(guest).with_extension("wasm")
}

fn messages() -> Vec<Message> {
    (0..MESSAGES).map(|number| message(number as i64)).collect()
}

fn message(offset: i64) -> Message {
    let text = "this is what people say to each other in a room where a stream is watched";
    let body = format!(
        "{:<200}",
        format!("{{\"user\":\"user_{offset}\",\"color\":\"#ffcc00\",\"text\":\"{text}\"}}")
    );
    let origin = Origin { topic: "push".into(), partition: 0, offset };
    let record =
        Record { origin, timestamp_ms: Some(1), key: None, value: None, headers: Vec::new(), trusted: false };
    Message {
        id: record.message_id(),
        record: Arc::new(record),
        audience: Audience::Room("video_1".into()),
        operation: 4,
        body: body.into(),
    }
}

fn membership() -> Membership {
    let connections = (0..CONNECTIONS).map(|number| Connection {
        id: format!("conn_{number:08}").into(),
        user: Some(format!("user_{number}").into()),
        comet: format!("10.0.0.{}:50051", number % COMETS).into(),
        online: true,
    });
    Membership::new(connections, 0)
}

/// The times of all repeats.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: f64) {
        self.0.push(time);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn best(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}
