//! `halley dead-letter redrive`.

use std::num::NonZeroU32;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::dead_letter::filter::{FilterArgs, no_topic};
use crate::cli::{ConfigArgs, FAILURE, SUCCESS, fail, print};
use crate::config::Config;
use crate::dead_letter::{DeadLetter, Fate, Order, Summary, redrive};
use crate::gateway::Storage;
use crate::kafka::{self, TopicSet};
use crate::message::RedriveKey;
use crate::telemetry::escape::cut;

/// How many refused letters are named: anybody may have written a million of them.
const MOST_REFUSALS: u64 = 100;
/// The most characters of a text of a letter.
const LONGEST: usize = 1_000;

/// Arguments of `halley dead-letter redrive`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Says what it would do, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// At most so many a second.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Redrives also what was redriven before.
    #[arg(long)]
    from_start: bool,
    /// Sends each message to all comets and users that it is for, also those that had it before.
    #[arg(long)]
    all_comets: bool,
    /// Also writes to this topic (or to those of a pattern, which begins with `^`), when a letter says
    /// that it came from there. May be given several times. Without it, only topics of `[kafka]
    /// topics` are written to.
    #[arg(long, value_name = "TOPIC")]
    allow_topic: Vec<String>,
    /// The consumer group that remembers the progress [default: `[kafka] group` and "-redrive"].
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<u8> {
    let key = if args.dry_run { None } else { Some(key(config).await?) };
    let own = [config.kafka.dead_letter_topic.as_str(), config.offline.notify_topic.as_str()];
    let allowed = TopicSet::consumed_and(&config.kafka, &args.allow_topic, &own);
    let config = &config.kafka;
    let group = args.group.clone().unwrap_or_else(|| format!("{}-redrive", config.group));
    let order = Order {
        filter: args.filter.filter(),
        limit: args.filter.limit,
        rate: args.rate,
        from_start: args.from_start,
        all_comets: args.all_comets,
        dry_run: args.dry_run,
        group,
        allowed,
        key,
    };
    // Listened for before anything is written.
    let signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut refusals = 0;
    let mut tell = |letter: &DeadLetter, fate: &Fate| tell(letter, fate, args.dry_run, &mut refusals);
    let summary = redrive(config, order, &mut tell, stop(signals)).await?;
    Ok(report(config, &summary, args.dry_run))
}

/// The key that proves what is redriven, from the gateways' Redis.
async fn key(config: &Config) -> anyhow::Result<RedriveKey> {
    if config.redis.is_memory() {
        fail(
            "warning: `[redis] url` is memory://, where no other process finds the key that proves what is redriven: gateways take it for new messages",
        );
    }
    let storage = Storage::open(config, &mut Registry::default())?;
    storage.redrive_keys.read_or_make().await.context("cannot read the key that proves what is redriven")
}

async fn stop((mut interrupt, mut terminate): (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn tell(letter: &DeadLetter, fate: &Fate, dry_run: bool, refusals: &mut u64) {
    let id = &letter.id;
    match fate {
        Fate::Written(topic) if dry_run => {
            let (stage, reason) = (cut(&letter.stage, LONGEST), cut(&letter.reason, LONGEST));
            print(&format!("would write {id} to {topic} ({stage}: {reason})"));
        }
        Fate::Written(_) => {}
        Fate::Refused(why) => {
            complain(refusals, &|| format!("{} is not redriven: {why}", letter.record.origin));
        }
        Fate::Failed(why) => {
            complain(refusals, &|| format!("{id} is not redriven, nor what comes after it: {why}"));
        }
    }
}

/// Says what is wrong with one letter, unless that was said of many.
fn complain(refusals: &mut u64, what: &dyn Fn() -> String) {
    *refusals += 1;
    match *refusals {
        ..=MOST_REFUSALS => fail(&what()),
        n if n == MOST_REFUSALS + 1 => {
            fail("further refusals are only counted; `dead-letter list` shows the letters");
        }
        _ => {}
    }
}

fn report(config: &kafka::Config, summary: &Summary, dry_run: bool) -> u8 {
    if summary.missing {
        fail(&no_topic(&config.dead_letter_topic));
        return SUCCESS;
    }
    if summary.made_again {
        let topic = &config.dead_letter_topic;
        fail(&format!(
            "`{topic}` was made again since the last redrive; what was redriven before is not counted"
        ));
    }
    print(&counts(summary, dry_run));
    if summary.forgotten > 0 {
        fail(&format!(
            "{} of the redriven records lie too scattered to be remembered; another run would repeat them (with the same message ids) until what the filters left out between is redriven",
            summary.forgotten
        ));
    }
    if let Some(why) = &summary.broken {
        fail(&format!("{why}; run the same command again to go on"));
    } else if summary.interrupted {
        fail("interrupted; run the same command again to go on");
    }
    let unfinished = summary.interrupted || summary.broken.is_some() || summary.failed + summary.refused > 0;
    if unfinished { FAILURE } else { SUCCESS }
}

fn counts(summary: &Summary, dry_run: bool) -> String {
    let total: u64 = summary.redriven.values().sum();
    let topics: Vec<_> =
        summary.redriven.iter().map(|(topic, count)| format!("{count} to {topic}")).collect();
    let done = if dry_run { "would be redriven" } else { "redriven" };
    let mut parts = vec![format!("{total} {done}")];
    if !topics.is_empty() {
        parts[0].push_str(&format!(" ({})", topics.join(", ")));
    }
    let others = [
        (summary.restamped, "of these with the time of now"),
        (summary.before, "redriven before"),
        (summary.left_out, "left out by the filters"),
        (summary.refused, "refused"),
        (summary.failed, "failed"),
    ];
    parts
        .extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    parts.join(", ")
}
