//! `halley archive`: the archive of stored messages in MySQL, without a gateway.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::ArchiverProbes;
use crate::archive;
use crate::cli::signals::{SIGNAL_DEBOUNCE, Signals};
use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, block_on, print, print_lines, usage};
use crate::config::Config;
use crate::consumer::StopOutcome;
use crate::gateway::RunningArchiver;
use crate::{panics, telemetry};

/// Grace period of the listener for metrics.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Arguments of `halley archive`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Serves /metrics, /healthz and /readyz at this address, without a token: bind it where only
    /// monitoring can connect.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates the tables, or migrates them to this release.
    ///
    /// The database itself has to exist. The user needs CREATE, ALTER and DROP (for day partitions),
    /// SELECT, INSERT, UPDATE and DELETE on it.
    Init(InitArgs),
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the statements for an empty database instead.
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    match args.command {
        Some(Command::Init(InitArgs { print: true, .. })) => {
            for statement in archive::statements() {
                print_lines(format!("{statement};").lines());
            }
            Ok(EXIT_SUCCESS)
        }
        Some(Command::Init(InitArgs { config, .. })) => {
            let config = config.load()?;
            let (before, after) = block_on(archive::init(&config.archive))?;
            match before == after {
                true => print(&format!("the archive's tables have version {after} already")),
                false => print(&format!("the archive's tables have version {after} now (before: {before})")),
            }
            Ok(EXIT_SUCCESS)
        }
        None => archive_until_stopped(&args.config, args.metrics_listen),
    }
}

fn archive_until_stopped(args: &ConfigArgs, metrics: Option<String>) -> anyhow::Result<u8> {
    let config = args.load()?;
    if !config.archive.has_database() {
        return usage("`archive.url` is empty; set it to mysql://user:password@host/database");
    }
    telemetry::init(&config.log).or_usage()?;
    panics::install_hook();
    info!(config = args.source(), "halley archive {}", env!("CARGO_PKG_VERSION"));
    block_on(serve(config, metrics))
}

async fn serve(config: Config, metrics: Option<String>) -> anyhow::Result<u8> {
    let mut signals = Signals::new(Arc::default())?;
    let mut registry = Registry::default();
    telemetry::register(&mut registry);
    let probes = match &metrics {
        Some(listen) => Some(ArchiverProbes::bind(listen, &mut registry).await?),
        None => None,
    };
    let archiver = RunningArchiver::start_alone(&config, &mut registry)?;
    let shutdown = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    if let Some(probes) = probes {
        serving.spawn(probes.serve(registry, archiver.status(), shutdown.clone()));
    }
    tokio::select! {
        () = signals.next() => {}
        () = archiver.until_fenced() => {}
    }
    let since = Instant::now();
    let stopped = tokio::select! {
        stopped = archiver.stop(config.delivery.shutdown_grace) => stopped,
        () = signals.next_after(since + SIGNAL_DEBOUNCE) => {
            warn!("second signal: exiting immediately; what is in flight is archived again");
            return Ok(EXIT_FAILURE);
        }
    };
    shutdown.cancel();
    drop(tokio::time::timeout(LAST_ANSWERS, serving.join_next()).await);
    match stopped {
        StopOutcome::Drained => info!("stopped: all records in flight are archived"),
        other => warn!(outcome = ?other, "stopped before all records in flight were archived"),
    }
    Ok(if stopped == StopOutcome::Drained { EXIT_SUCCESS } else { EXIT_FAILURE })
}
