//! `halley check`: reports every mistake in configuration and plugins, without starting anything.

mod certificates;
mod connect;
mod result;

use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, fail, print, print_json, runtime};
use crate::config::{Config, ConfigError, ConfigReport};
use crate::decision::PluginVersion;
use crate::mistake::Mistake;
use crate::policy::{PluginConfig, PluginProblem, Policies, PolicyDependencies};
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
    /// that certificates are valid, with a warning if for less than 30 days; and that the listeners' ports
    /// are free. Changes nothing.
    #[arg(long)]
    connect: bool,
    /// Prints JSON: `file`, `mistakes` and `warnings` (`place`, perhaps `line`, `key`, `text`), `plugins`,
    /// and with --connect `connections` (`subject`, `ok`, perhaps `warning`, `text`).
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
    let mut report = Config::inspect(args.file().as_deref());
    let config = report.config.clone();
    report.add(gateway::verify(&config));
    report.add(config.admin.token_problems());
    report.add(api::token_problem(&config.api));
    report.add(traces::headers_problem(&config.traces));
    report.add(config.comets.discovery.file_problem());
    report.add(certificates::problems(&config));
    let plugins = plugins(&config).unwrap_or_else(|problems| {
        report.add(problems);
        Vec::new()
    });
    let ConfigReport { mistakes, warnings, .. } = report;
    let plugins = plugins.iter().map(PluginVersion::to_string).collect();
    (config, CheckReport { file: args.source(), mistakes, warnings, plugins, connections: Vec::new() })
}

fn plugins(config: &Config) -> Result<Vec<PluginVersion>, Vec<Mistake>> {
    let one = |key| move |error: anyhow::Error| vec![Mistake::about(key, format!("{error:#}"))];
    let setup = PolicyDependencies::of_command(&config.policies).map_err(one("policies"))?;
    let wanted = config.plugins().map_err(one("policies.directory"))?;
    let problems = match Policies::start_with(setup, &wanted) {
        Ok(policies) => {
            // A gateway starts without these plugins; `check` reports them.
            let left_out = policies.status().left_out;
            if left_out.is_empty() {
                return Ok(policies.current().versions().to_vec());
            }
            left_out
        }
        Err(refused) => refused.problems,
    };
    Err(problems.into_iter().map(|problem| mistake_of(config, problem)).collect())
}

/// The mistake behind a plugin's problem.
fn mistake_of(config: &Config, problem: PluginProblem) -> Mistake {
    let text = problem.to_string();
    let is_it = |plugin: &PluginConfig| plugin.name == problem.plugin && plugin.path == problem.path;
    match config.plugin.iter().rposition(is_it) {
        Some(at) => {
            let mistake = problem.key.iter().fold(Mistake::about("plugin", text).at(at), Mistake::at);
            // What is not about a key of its own may follow from anything that is configured for it.
            match problem.key.first().map(String::as_str) {
                None | Some("path" | "rollout") => mistake.and("policies"),
                Some(_) => mistake,
            }
        }
        None => Mistake::about("policies.directory", text),
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
        let line = |ConfigError { place, text, .. }: &ConfigError| format!("{place}: {text}");
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
