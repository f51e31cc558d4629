//! The cost of a policy in each language: the same one, which masks words, in Rust and in the
//! languages of `plugins/languages`. Prints a table; `make bench-languages` builds what it needs.
//!
//! A message has a body of 200 bytes, and every fourth body contains a word. It times a worker's chain
//! with this plugin only, called as in the gateway. The first line has no plugin at all.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use halley::message::{Audience, Message, MessageId, Origin, Record};
use halley::policy::{Chain, PluginConfig, Policies};
use halley::wasm::Runtime;
use prometheus_client::registry::Registry;

/// How long each figure is measured for.
const MEASURED: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let files = [
        ("Rust", "plugins/dist/mask_words.wasm"),
        ("C", "plugins/languages/dist/mask_words_c.wasm"),
        ("Go", "plugins/languages/dist/mask_words_go.wasm"),
        ("Python", "plugins/languages/dist/mask_words_python.wasm"),
        ("JavaScript", "plugins/languages/dist/mask_words_javascript.wasm"),
    ];
    println!(
        "| language | file | load, once a version | start of an instance | its memory | a message, batch 64 | batch 1 |"
    );
    println!("|---|---|---|---|---|---|---|");
    measure("(no plugin)", None)?;
    for (language, file) in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if path.is_file() {
            measure(language, Some(path))?;
        } else {
            println!("| {language} | {file} is not there | | | | | |");
        }
    }
    Ok(())
}

/// Prints one line of the table.
fn measure(language: &str, file: Option<PathBuf>) -> anyhow::Result<()> {
    let size = file.as_ref().map(std::fs::metadata).transpose()?.map_or(0, |file| file.len());
    let plugins: Vec<PluginConfig> = file.map(|file| plugin(language, file)).into_iter().collect();
    let runtime = Runtime::new(&mut Registry::default())?;
    let begun = Instant::now();
    let policies = Policies::start(runtime, &plugins)?;
    let load = begun.elapsed();

    let before = resident_kib()?;
    let begun = Instant::now();
    let mut chain = policies.current().chain();
    chain.filter("push", 0, messages(1))?;
    let start = begun.elapsed();
    for _ in 0..20 {
        chain.filter("push", 0, messages(64))?;
    }
    let memory = resident_kib()?.saturating_sub(before);

    let (of_64, of_1) = (a_message(&mut chain, 64)?, a_message(&mut chain, 1)?);
    println!(
        "| {language} | {} KiB | {load:.2?} | {start:.2?} | {:.1} MiB | {of_64:.2?} | {of_1:.2?} |",
        size / 1024,
        memory as f64 / 1024.0
    );
    Ok(())
}

fn plugin(language: &str, file: PathBuf) -> PluginConfig {
    PluginConfig {
        deadline: Duration::from_secs(5),
        config: serde_json::json!({ "words": ["spam", "spammer", "广告", "casino"] }),
        ..PluginConfig::new(language, file)
    }
}

/// The median of many batches, divided by their size.
fn a_message(chain: &mut Chain, batch: u32) -> anyhow::Result<Duration> {
    let until = Instant::now() + MEASURED;
    let mut times = Vec::new();
    while Instant::now() < until {
        let messages = messages(batch);
        let begun = Instant::now();
        let filtered = chain.filter("push", 0, messages)?;
        times.push(begun.elapsed());
        anyhow::ensure!(
            filtered.iter().all(|one| !one
                .trail
                .iter()
                .any(|entry| matches!(entry.effect, halley::decision::Effect::Failed { .. }))),
            "the policy failed: {:?}",
            filtered[0].trail
        );
    }
    times.sort();
    Ok(times[times.len() / 2] / batch)
}

fn messages(batch: u32) -> Vec<Message> {
    (0..batch).map(|number| message(i64::from(number))).collect()
}

fn message(offset: i64) -> Message {
    let word = if offset % 4 == 0 { "a spammer" } else { "a neighbor" };
    let body =
        format!("{:<200}", format!("{{\"user\":\"user_{offset}\",\"text\":\"I am {word} and say so.\"}}"));
    let origin = Origin { topic: "push".into(), partition: 0, offset };
    let record =
        Record { origin, timestamp_ms: Some(1), key: None, value: None, headers: Vec::new(), trusted: false };
    Message {
        id: MessageId::from(format!("push/0/{offset}").as_str()),
        record: Arc::new(record),
        audience: Audience::Room("video_1".into()),
        operation: 4,
        body: body.into(),
    }
}

/// The memory of this process in KiB; 0 where the system does not report it.
fn resident_kib() -> anyhow::Result<u64> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return Ok(0) };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
