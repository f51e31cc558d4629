//! `halley check`: reports every mistake in configuration and plugins, without starting anything.

mod certificates;
mod connect;
mod result;

use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, fail, print, print_json, runtime};
use crate::config::{Config, ConfigError, ConfigReport};
use crate::decision::PluginVersion;
use crate::policy::{Policies, PolicyDependencies};
use crate::telemetry::traces;
use crate::{api, gateway};
use result::CheckResult;

/// Arguments of `halley check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also checks that Kafka, Redis, the archive's database, the configured comets and the registries
    /// of plugins are reachable; that this user may use the required topics, consumer group and keys;
    /// that certificates are valid, with a warning if for less than 30 days; and that the admin port is
    /// free. Changes nothing.
    #[arg(long)]
    connect: bool,
    /// Prints JSON: `file`, `mistakes` and `warnings` (`place`, `text`), `plugins`, and with
    /// --connect `connections` (`subject`, `ok`, perhaps `warning`, `text`).
    #[arg(long)]
    json: bool,
}

/// The report.
#[derive(serde::Serialize)]
struct CheckReport {
    /// Where the configuration was read from.
    file: String,
    mistakes: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
    plugins: Vec<String>,
    /// What --connect found; empty if there are mistakes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    connections: Vec<CheckResult>,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let (config, mut report) = inspect(&args.config);
    if args.connect && report.mistakes.is_empty() {
        let runtime = runtime()?;
        report.connections = runtime.block_on(connect::all(&config));
        // A call to an unreachable Kafka may still block; the process does not wait for it.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    }
    if args.json {
        print_json(&serde_json::to_string_pretty(&report)?);
        return Ok(report.code());
    }
    report.print_report();
    if report.mistakes.is_empty() {
        print(&config.comets.who_may_be_called());
    }
    if report.mistakes.is_empty() && !config.comets.names_comets() && !args.connect {
        print(
            "no comet is configured: broadcasts reach the comets that gateways recently found in the directory; --connect shows them",
        );
    }
    Ok(report.code())
}

/// Checks everything that needs no network.
fn inspect(args: &ConfigArgs) -> (Config, CheckReport) {
    let ConfigReport { config, mut mistakes, warnings } = Config::inspect(args.file().as_deref());
    let place = args.file().map_or_else(|| "configuration".to_owned(), |file| file.display().to_string());
    let placed = |text: String| ConfigError { place: place.clone(), text };
    mistakes.extend(gateway::verify(&config).into_iter().map(placed));
    mistakes.extend(config.admin.token_problems().into_iter().map(placed));
    mistakes.extend(api::token_problem(&config.api).map(placed));
    mistakes.extend(traces::headers_problem(&config.traces).map(placed));
    mistakes.extend(config.comets.discovery.file_problem().map(placed));
    mistakes.extend(certificates::problems(&config).into_iter().map(placed));
    let plugins = match plugins(&config) {
        Ok(versions) => versions.iter().map(PluginVersion::to_string).collect(),
        Err(problems) => {
            mistakes.extend(problems.into_iter().map(placed));
            Vec::new()
        }
    };
    let report = CheckReport { file: args.source(), mistakes, warnings, plugins, connections: Vec::new() };
    (config, report)
}

fn plugins(config: &Config) -> Result<Vec<PluginVersion>, Vec<String>> {
    let one = |error: anyhow::Error| vec![format!("{error:#}")];
    let setup = PolicyDependencies::of_command(&config.policies).map_err(one)?;
    let wanted = config.plugins().map_err(one)?;
    match Policies::start_with(setup, &wanted) {
        Ok(policies) => {
            // A gateway starts without these plugins; `check` reports them.
            let left_out: Vec<_> = policies.status().left_out.iter().map(ToString::to_string).collect();
            if left_out.is_empty() { Ok(policies.current().versions().to_vec()) } else { Err(left_out) }
        }
        Err(refused) => Err(refused.problems.iter().map(ToString::to_string).collect()),
    }
}

impl CheckReport {
    fn code(&self) -> u8 {
        match () {
            () if !self.mistakes.is_empty() => EXIT_USAGE,
            () if self.connections.iter().any(|connected| !connected.ok) => EXIT_FAILURE,
            () => EXIT_SUCCESS,
        }
    }

    fn print_report(&self) {
        let line = |ConfigError { place, text }: &ConfigError| format!("{place}: {text}");
        self.warnings.iter().for_each(|warning| fail(&format!("warning: {}", line(warning))));
        if !self.mistakes.is_empty() {
            self.mistakes.iter().for_each(|mistake| fail(&line(mistake)));
            fail(&format!("{} found in {}", count(self.mistakes.len(), "mistake"), self.file));
            return;
        }
        print(&format!(
            "configuration ({}) and {} are valid",
            self.file,
            count(self.plugins.len(), "plugin")
        ));
        self.plugins.iter().for_each(|name| print(&format!("  {name}")));
        for CheckResult { subject, ok, warning, text } in &self.connections {
            match (ok, warning) {
                (true, false) => print(&format!("{subject}: {text}")),
                (true, true) => fail(&format!("warning: {subject}: {text}")),
                (false, _) => fail(&format!("{subject}: {text}")),
            }
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
