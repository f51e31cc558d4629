//! `halley dead-letter redrive`.

use std::num::NonZeroU32;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::dead_letter::filter::{FilterArgs, no_topic};
use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, fail, print};
use crate::config::Config;
use crate::dead_letter::{DeadLetter, RedriveOptions, RedriveOutcome, RedriveSummary, redrive};
use crate::gateway::Storage;
use crate::kafka::{self, TopicSet};
use crate::message::RedriveKey;
use crate::telemetry::escape::cut;

/// Maximum number of refused letters that are listed: anyone may have written a million of them.
const MOST_REFUSALS: u64 = 100;
/// Maximum length of a letter's text, in characters.
const LONGEST: usize = 1_000;

/// Arguments of `halley dead-letter redrive`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Reports what a redrive would do, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// At most N records per second.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Also redrives letters that were redriven before.
    #[arg(long)]
    from_start: bool,
    /// Sends each message to all of its comets and users, including those that already received it.
    #[arg(long)]
    all_comets: bool,
    /// Also allows this topic (or the topics of a pattern, which begins with `^`) as an origin. May
    /// be repeated. Otherwise only topics of `[kafka] topics` are written to.
    #[arg(long, value_name = "TOPIC")]
    allow_topic: Vec<String>,
    /// The consumer group that stores the progress [default: `[kafka] group` and "-redrive"].
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<u8> {
    let key = if args.dry_run { None } else { Some(key(config).await?) };
    let own = [config.kafka.dead_letter_topic.as_str(), config.offline.notify_topic.as_str()];
    let allowed = TopicSet::consumed_with(&config.kafka, &args.allow_topic, &own);
    let config = &config.kafka;
    let group = args.group.clone().unwrap_or_else(|| format!("{}-redrive", config.group));
    let options = RedriveOptions {
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
    // Registered before anything is written.
    let signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut refusals = 0;
    let mut report_outcome = |letter: &DeadLetter, outcome: &RedriveOutcome| {
        report_outcome(letter, outcome, args.dry_run, &mut refusals)
    };
    let summary = redrive(config, options, &mut report_outcome, stop(signals)).await?;
    Ok(report(config, &summary, args.dry_run))
}

/// The key that proves redriven records, from the gateways' Redis.
async fn key(config: &Config) -> anyhow::Result<RedriveKey> {
    if config.redis.is_memory() {
        fail(
            "warning: `[redis] url` is memory://, so no other process can read the key that proves redriven records: gateways treat them as new messages",
        );
    }
    let storage = Storage::open(config, &mut Registry::default())?;
    storage.redrive_keys.read_or_create().await.context("cannot read the key that proves redriven records")
}

async fn stop((mut interrupt, mut terminate): (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn report_outcome(letter: &DeadLetter, outcome: &RedriveOutcome, dry_run: bool, refusals: &mut u64) {
    let id = &letter.id;
    match outcome {
        RedriveOutcome::Written(topic) if dry_run => {
            let (stage, reason) = (cut(&letter.stage, LONGEST), cut(&letter.reason, LONGEST));
            print(&format!("would write {id} to {topic} ({stage}: {reason})"));
        }
        RedriveOutcome::Written(_) => {}
        RedriveOutcome::Refused(why) => {
            report_refusal(refusals, &|| format!("{} was not redriven: {why}", letter.record.origin));
        }
        RedriveOutcome::Failed(why) => {
            report_refusal(refusals, &|| {
                format!("{id} was not redriven, nor were the letters after it: {why}")
            });
        }
    }
}

/// Reports a failed letter, up to a limit.
fn report_refusal(refusals: &mut u64, what: &dyn Fn() -> String) {
    *refusals += 1;
    match *refusals {
        ..=MOST_REFUSALS => fail(&what()),
        n if n == MOST_REFUSALS + 1 => {
            fail("further refusals are only counted; `dead-letter list` shows the letters");
        }
        _ => {}
    }
}

fn report(config: &kafka::Config, summary: &RedriveSummary, dry_run: bool) -> u8 {
    if summary.missing {
        fail(&no_topic(&config.dead_letter_topic));
        return EXIT_SUCCESS;
    }
    if summary.recreated {
        let topic = &config.dead_letter_topic;
        fail(&format!("`{topic}` was recreated since the last redrive; earlier progress is ignored"));
    }
    print(&counts(summary, dry_run));
    if summary.forgotten > 0 {
        fail(&format!(
            "{} of the redriven records are too scattered to be committed; another run repeats them (with the same message ids) until the letters that the filters excluded in between are redriven",
            summary.forgotten
        ));
    }
    if let Some(why) = &summary.aborted {
        fail(&format!("{why}; run the same command again to continue"));
    } else if summary.interrupted {
        fail("interrupted; run the same command again to continue");
    }
    let unfinished = summary.interrupted || summary.aborted.is_some() || summary.failed + summary.refused > 0;
    if unfinished { EXIT_FAILURE } else { EXIT_SUCCESS }
}

fn counts(summary: &RedriveSummary, dry_run: bool) -> String {
    let total: u64 = summary.redriven.values().sum();
    let topics: Vec<_> =
        summary.redriven.iter().map(|(topic, count)| format!("{count} to {topic}")).collect();
    let done = if dry_run { "would be redriven" } else { "redriven" };
    let mut parts = vec![format!("{total} {done}")];
    if !topics.is_empty() {
        parts[0].push_str(&format!(" ({})", topics.join(", ")));
    }
    let others = [
        (summary.restamped, "of these with the current time"),
        (summary.before, "redriven before"),
        (summary.left_out, "excluded by the filters"),
        (summary.refused, "refused"),
        (summary.failed, "failed"),
    ];
    parts
        .extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    parts.join(", ")
}
