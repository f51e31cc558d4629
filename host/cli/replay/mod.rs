//! `halley replay`: replays recorded traffic through a policy offline, and shows what another version
//! of it would have decided differently.
//!
//! Has no side effects: it joins no group, commits nothing, claims no guards, does not use Redis and
//! delivers nothing. Local state starts empty and ends with the process.

mod findings;
mod range;
mod replayed_plugin;
mod show;
mod traffic;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;

use crate::artifact::PluginSource;
use crate::cli::{
    ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, block_on, fail, plugin_name_of, print_json,
    print_lines, read_input, usage,
};
use crate::config::Config;
use crate::kafka::TopicReader;
use crate::policy::PluginConfig;
use crate::time;

use findings::Findings;
use range::TimeRange;
use replayed_plugin::ReplayedPlugin;
use traffic::{ReplayItem, Traffic};

/// Arguments of `halley replay`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The topic: one with push messages, or a dead-letter topic, whose letters are replayed as the
    /// original records.
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// Where to begin: `2026-01-31T12:00:00Z`, `2026-01-31`, or a time ago: `-2h`, `-7days`. Record
    /// timestamps are compared.
    #[arg(long, value_name = "TIME", value_parser = time::parse, allow_hyphen_values = true)]
    from: SystemTime,
    /// Where to end: records before this time. `now`, or as for --from.
    #[arg(long, value_name = "TIME", value_parser = time::parse, allow_hyphen_values = true, default_value = "now")]
    to: SystemTime,
    /// The plugin's file.
    #[arg(long, value_name = "FILE")]
    plugin: PathBuf,
    /// The configured plugin whose settings are used. Default: the one named like the file:
    /// `keyword_filter.wasm` is `keyword-filter`.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The plugin's configuration as JSON, instead of the configured one.
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
    /// What to compare with: `current`, the configured plugin with its file and settings, or another
    /// file with the candidate's settings.
    #[arg(long, value_name = "current|FILE")]
    against: Option<PathBuf>,
    /// How many changed messages are shown.
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,
    /// Prints JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Exits with code 1 when decisions change: for CI pipelines.
    #[arg(long, requires = "against")]
    fail_on_change: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let config = args.config.load()?;
    let range = TimeRange::of(args.from, args.to).or_usage()?;
    let plugins = plugins(&args, &config).or_usage()?;
    block_on(replay(&args, &config, range, plugins))
}

/// The candidate, and the version that it is compared with.
fn plugins(args: &Args, config: &Config) -> anyhow::Result<(ReplayedPlugin, Option<ReplayedPlugin>)> {
    let configured = config.plugins()?;
    let names = || configured.iter().map(|plugin| plugin.name.as_str());
    let name = args.name.clone().unwrap_or_else(|| plugin_name_of(&args.plugin, names()));
    let current = configured.iter().find(|plugin| plugin.name == name);
    let known: Vec<_> = names().collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    anyhow::ensure!(
        current.is_some() || args.name.is_none(),
        "plugin `{name}` is not configured (configured: {known})"
    );
    let mut settings = current.cloned().unwrap_or_else(|| PluginConfig::new(&name, &args.plugin));
    if let Some(file) = &args.plugin_config {
        settings.config = json(file)?;
    }
    let plugin = |settings: &PluginConfig, file: PluginSource| {
        ReplayedPlugin::new(settings, file, config.policies.runtime_of_a_command())
    };
    let candidate = plugin(&settings, args.plugin.as_path().into())?;
    let against = match &args.against {
        None => None,
        Some(word) if word == Path::new("current") => {
            let current = current.with_context(|| {
                format!("--against current: plugin `{name}` is not configured (configured: {known}); name it with --name")
            })?;
            Some(plugin(current, current.path.clone())?)
        }
        Some(file) => Some(plugin(&settings, file.as_path().into())?),
    };
    Ok((candidate, against))
}

fn json(file: &Path) -> anyhow::Result<serde_json::Value> {
    let text = read_input(file)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

async fn replay(
    args: &Args,
    config: &Config,
    range: TimeRange,
    plugins: (ReplayedPlugin, Option<ReplayedPlugin>),
) -> anyhow::Result<u8> {
    // librdkafka requires a group name; the client never joins the group.
    let group = format!("{}-replay", config.kafka.group);
    let Some(mut reader) = TopicReader::open(&config.kafka, &args.topic, &group).await? else {
        return usage(&format!(
            "topic `{}` not found at `{}`; check --topic",
            args.topic, config.kafka.brokers
        ));
    };
    // Dead letters have the timestamps of the original messages, in no order.
    let is_in_order = args.topic != config.kafka.dead_letter_topic;
    reader.narrow(time::to_record_ms(args.from), is_in_order.then_some(range.stop_ms)).await?;
    let (candidate, against) = plugins;
    let mut run = ReplayRun {
        findings: Findings::new(
            &args.topic,
            candidate.version(),
            against.as_ref().map(ReplayedPlugin::version),
            args.examples,
        ),
        traffic: Traffic { range, max_batch: config.delivery.max_batch },
        candidate,
        against,
        progress: ProgressLine::of(reader.left()),
    };
    let ended = tokio::select! {
        ended = run.everything(&mut reader) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    run.progress.clear();
    Ok(report(args, &run.findings, ended))
}

/// Prints the findings, even if the end was not reached.
fn report(args: &Args, findings: &Findings, ended: Option<anyhow::Result<()>>) -> u8 {
    let is_whole = matches!(ended, Some(Ok(())));
    if args.json {
        print_json(&show::json(findings, is_whole).to_string());
    } else if findings.records > 0 {
        print_lines(show::lines(findings));
    }
    match ended {
        None => fail("interrupted: these are the findings so far"),
        Some(Err(error)) => fail(&format!("{error:#}; these are the findings before the error")),
        Some(Ok(())) if findings.records == 0 => {
            fail(&format!("`{}` has no records between these times; check --from and --to", args.topic));
        }
        Some(Ok(())) => {}
    }
    let changed = args.fail_on_change && findings.changed > 0;
    if is_whole && findings.records > 0 && findings.candidate.failed() == 0 && !changed {
        EXIT_SUCCESS
    } else {
        EXIT_FAILURE
    }
}

struct ReplayRun {
    traffic: Traffic,
    candidate: ReplayedPlugin,
    against: Option<ReplayedPlugin>,
    findings: Findings,
    progress: ProgressLine,
}

impl ReplayRun {
    async fn everything(&mut self, reader: &mut TopicReader) -> anyhow::Result<()> {
        loop {
            let records = reader.read().await?;
            if records.is_empty() {
                return Ok(());
            }
            for item in self.traffic.items(records) {
                match item {
                    ReplayItem::LeftOut(what) => self.findings.left_out(what),
                    ReplayItem::Batch(batch) => {
                        let candidate = self.candidate.decide(&batch)?;
                        let against =
                            self.against.as_mut().map(|plugin| plugin.decide(&batch)).transpose()?;
                        self.findings.add(candidate, against);
                    }
                }
                // Ctrl-C is handled between two batches.
                tokio::task::yield_now().await;
            }
            self.progress.tell(self.findings.records, reader.left());
        }
    }
}

/// A progress line on a terminal, which is overwritten.
struct ProgressLine {
    total: u64,
    next: Instant,
    is_shown: bool,
}

impl ProgressLine {
    fn of(total: u64) -> Self {
        Self { total, next: Instant::now() + Duration::from_secs(1), is_shown: false }
    }

    fn tell(&mut self, records: u64, left: u64) {
        if Instant::now() < self.next || !std::io::stderr().is_terminal() {
            return;
        }
        self.next = Instant::now() + Duration::from_millis(500);
        self.is_shown = true;
        let done = (self.total - left.min(self.total)) * 100 / self.total.max(1);
        show::over_the_line(&format!("{done}% read, {records} records replayed"));
    }

    fn clear(&self) {
        if self.is_shown {
            show::over_the_line("");
        }
    }
}
