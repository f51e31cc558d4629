//! The cost of policies: calls through WebAssembly compared with the same Rust code called natively,
//! in one run. Prints tables; `make bench-plugins` builds what it needs.
//!
//! It times a worker's chain, called as in the gateway; the rows about the filter stage run in a task
//! of a runtime with several threads, and count the CPU time of the whole process. The compared
//! variants alternate, so that a busy machine slows all of them; figures are medians, with the best
//! repeat next to them.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use halley::membership::{Connection, CurrentPlacement, Grouping, Membership};
use halley::message::{Audience, Message, Origin, Record};
use halley::policy::{Chain, FilterProgress, FilterRun, PluginConfig, Policies};
use halley::wasm::{Runtime, RuntimeConfig};
use prometheus_client::registry::Registry;

#[allow(dead_code, reason = "the rows here need less of it")]
#[path = "bench/cpu.rs"]
mod cpu;
#[path = "../tests/guests/bench-filter/src/rule.rs"]
mod filter_rule;
#[path = "../tests/guests/bench-grouping/src/rule.rs"]
mod grouping_rule;
#[allow(dead_code, reason = "the policy needs more of it")]
#[path = "../plugins/keyword-filter/src/words.rs"]
mod keyword_rule;

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
/// The words of the keyword filter, and how many batches of 64 one of its repeats has.
const KEYWORDS: usize = 1_000;
const STAGE_BATCHES: usize = 16;

fn main() -> anyhow::Result<()> {
    // For profiles of the hot path alone.
    if std::env::args().nth(1).as_deref() == Some("stage") {
        return stage();
    }
    filters()?;
    stage()?;
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

/// The filter stage as partitions' workers run it, for batches of 64: in CPU time of the process.
fn stage() -> anyhow::Result<()> {
    let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let words = keywords();
    let natively = keyword_rule::Words::new(&words, true).map_err(anyhow::Error::msg)?;
    let messages = messages();
    let shouts = |message: &Message| filter_rule::shouts(&message.body);
    let holds_a_word = |message: &Message| natively.occur_in(&message.body);
    println!("\nThe filter stage in a worker of the gateway, batches of 64, ns of CPU time per message:\n");
    println!("| plugin | wasm | native | ratio | above native | at best |");
    println!("|--------|-----:|-------:|------:|-------------:|--------:|");
    let capitals = plugin("capitals", file("bench_filter"), &[]);
    let keywords = |operations: &[i32]| PluginConfig {
        config: serde_json::json!({ "words": words, "operations": operations }),
        ..plugin("keyword-filter", bundled(), &[])
    };
    let (other, keywords) = (keywords(&[99]), keywords(&[]));
    stage_row("keyword-filter for another operation", &workers, &[other], &messages, |_| false)?;
    stage_row("counts capital letters", &workers, &[capitals], &messages, shouts)?;
    stage_row("keyword-filter, 1,000 words", &workers, &[keywords], &messages, holds_a_word)?;
    stage_row("no plugin", &workers, &[], &messages, |_| false)
}

fn stage_row(
    name: &str,
    workers: &tokio::runtime::Runtime,
    plugins: &[PluginConfig],
    messages: &[Message],
    natively: impl Fn(&Message) -> bool,
) -> anyhow::Result<()> {
    let policies = Policies::start(Runtime::new(&mut Registry::default())?, plugins)?;
    let chain = Arc::new(tokio::sync::Mutex::new(policies.current().chain()));
    let batch: Arc<[Message]> = messages[..64].into();
    let count = STAGE_BATCHES * batch.len();
    let (mut wasm, mut native) = (Times::default(), Times::default());
    for _ in 0..REPEATS {
        // A task, because the gateway's workers are tasks.
        let mut task = tokio::task::JoinSet::new();
        task.spawn_on(batches(Arc::clone(&chain), Arc::clone(&batch)), workers.handle());
        let taken = workers.block_on(task.join_next()).context("no task")?;
        wasm.add(taken?? / count as f64);
        let begun = cpu::time_of(std::process::id())?;
        for message in (0..STAGE_BATCHES).flat_map(|_| batch.iter()) {
            anyhow::ensure!(!natively(black_box(message)), "a message did not pass");
        }
        native.add((cpu::time_of(std::process::id())? - begun).as_nanos() as f64 / count as f64);
    }
    println!(
        "| {name} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |",
        wasm.median(),
        native.median(),
        wasm.median() / native.median(),
        wasm.median() - native.median(),
        wasm.best() - native.best(),
    );
    Ok(())
}

/// Several batches through the chain, as a worker passes them: the CPU time that they took.
async fn batches(chain: Arc<tokio::sync::Mutex<Chain>>, batch: Arc<[Message]>) -> anyhow::Result<f64> {
    let batches: Vec<Vec<Message>> = (0..STAGE_BATCHES).map(|_| batch.to_vec()).collect();
    let mut decided = Vec::with_capacity(STAGE_BATCHES);
    let begun = cpu::time_of(std::process::id())?;
    for messages in batches {
        let mut chain = chain.lock().await;
        let mut run = FilterRun::new(chain.set().generation(), messages);
        decided.push(chain.advance("push", 0, &mut run)?);
    }
    let taken = cpu::time_of(std::process::id())? - begun;
    for progress in decided {
        let FilterProgress::Done(filtered, _) = progress else { anyhow::bail!("it asks for state") };
        anyhow::ensure!(filtered.iter().all(|one| one.trail.is_empty()), "a message did not pass");
    }
    Ok(taken.as_nanos() as f64)
}

/// Words that no message contains, and that begin like many words of a language.
fn keywords() -> Vec<String> {
    const SYLLABLES: [&str; 20] = [
        "ba", "ce", "di", "fo", "gu", "ha", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wa", "stu",
        "tre", "chi", "sho", "pla",
    ];
    let syllable = |number: usize| SYLLABLES[number % SYLLABLES.len()];
    let word = |number| format!("{}{}{}x", syllable(number), syllable(number / 20), syllable(number / 400));
    (0..KEYWORDS).map(word).collect()
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
    let bundled = bundled();
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
        deadline: Duration::from_millis(100),
        config: serde_json::json!({ "words": wanted }),
        ..PluginConfig::new(name, file)
    }
}

fn file(guest: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/dist");
    folder.join(guest).with_extension("wasm")
}

/// The bundled keyword filter.
fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist/keyword_filter.wasm")
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
