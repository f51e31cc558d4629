//! Logging, traces, and helpers for metrics.
//!
//! The gateway never waits for its log or fails with it: see [`sink`]. Log lines may contain foreign
//! text: see [`escape`].

pub mod escape;
pub mod exposition;
mod fields;
mod metrics;
mod process;
mod sink;
mod throttle;
pub mod traces;

use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use prometheus_client::metrics::histogram::exponential_buckets;
use smart_default::SmartDefault;
use tracing_subscriber::EnvFilter;

use crate::mistake::{Mistake, mistake};

pub use fields::Fields;
pub(crate) use metrics::{Label, at_zero, label_enum, metrics};
pub(crate) use prometheus_client::encoding::EncodeLabelSet;
pub(crate) use prometheus_client::metrics::counter::Counter;
pub(crate) use prometheus_client::metrics::family::Family;
pub(crate) use prometheus_client::metrics::gauge::Gauge;
pub(crate) use prometheus_client::metrics::histogram::Histogram;
pub use prometheus_client::registry::Registry;
use sink::LogSink;
pub use throttle::LogThrottle;

/// The `[log]` section: what is written to standard error.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug` (one line per message) or `trace`; or a filter in the syntax
    /// of tracing's `EnvFilter`, such as `warn,halley::pipeline=debug`.
    #[default("info")]
    pub level: String,
    /// `text` for people, `json` for machines.
    #[default(Format::Text)]
    pub format: Format,
}

/// The format of log lines.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Deserialize,
    serde::Serialize,
    clap::ValueEnum,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        match self.filter() {
            Ok(_) => Vec::new(),
            Err(error) => vec![mistake!(
                "log.level",
                "is `{}`: {error}; use error, warn, info, debug or trace",
                self.level
            )],
        }
    }

    /// A plain level applies to the gateway; libraries log warnings only.
    fn filter(&self) -> anyhow::Result<EnvFilter> {
        if self.level.contains(['=', ',']) {
            return Ok(EnvFilter::try_new(&self.level)?);
        }
        // An unknown bare word would be taken for a module name, and nothing would be logged.
        let level: tracing::Level = self.level.parse().map_err(|_| anyhow::anyhow!("no such level"))?;
        Ok(EnvFilter::try_new(format!("warn,halley={level}"))?)
    }
}

/// The log of the process, once started.
static LOG: OnceLock<(LogSink, Format)> = OnceLock::new();

/// Starts logging to standard error. Further calls have no effect.
///
/// # Errors
/// If the level is invalid, or the thread cannot be started.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = config.filter().with_context(|| format!("log level `{}`", config.level))?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let format = config.format;
    let gap = move |lines| line(format, &format!("{lines} log lines could not be written and were dropped"));
    let sink =
        LogSink::start(std::io::stderr(), gap).context("cannot start the thread that writes the log")?;
    let (sink, _) = LOG.get_or_init(|| (sink, format));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(sink.clone())
        // tracing would print them with `eprintln!`, which panics if standard error fails.
        .log_internal_errors(false);
    // An error means that a subscriber is set already, as in tests.
    drop(match format {
        Format::Text => builder.fmt_fields(Fields).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).map_writer(sink::Json).try_init(),
    });
    Ok(())
}

/// Registers the metrics of the process and of its log.
pub fn register(registry: &mut Registry) {
    process::register(registry);
    registry.register("halley_log_lines_dropped", "Log lines that could not be written", sink::dropped());
}

/// Logs an error without tracing, which may be what has failed. Never fails, and never blocks once
/// the log has been started.
pub(crate) fn log_fatal(text: &str) {
    match LOG.get() {
        Some((sink, format)) => sink.put(&line(*format, text)),
        None => drop(std::io::stderr().write_all(&line(Format::Text, text))),
    }
}

/// Waits until the log is written, at most for this long: before the process exits.
pub(crate) fn flush(at_most: Duration) {
    if let Some((sink, _)) = LOG.get() {
        sink.flush(at_most);
    }
}

/// Formats a line as tracing does.
fn line(format: Format, text: &str) -> Vec<u8> {
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    let line = match format {
        Format::Text => format!("{now} ERROR {}\n", escape::block(text)),
        Format::Json => {
            let line = serde_json::json!({ "timestamp": now.to_string(), "level": "ERROR", "message": text });
            format!("{}\n", escape::json(&line.to_string(), usize::MAX))
        }
    };
    line.into_bytes()
}

/// An error with its causes, each once.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = inner.source();
    }
    words
}

/// A latency histogram in seconds: from 50 microseconds to about 13 seconds, doubling.
pub fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 19))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_level_is_reported() {
        assert_eq!(Config::default().validate(), []);
        let odd = Config { level: "halley=loud".into(), ..Config::default() };
        assert!(odd.validate()[0].text.contains("halley=loud"), "{:?}", odd.validate());
        let mistyped = Config { level: "inof".into(), ..Config::default() };
        assert!(mistyped.validate()[0].text.contains("`inof`: no such level"), "{:?}", mistyped.validate());
    }
}
