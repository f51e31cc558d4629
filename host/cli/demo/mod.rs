//! `halley demo`: everything in one process, with nothing to install: a Kafka (librdkafka's built-in
//! broker), three example comets, the directory in memory, and the bundled policies.
//!
//! The tour checks its own results; `--once` ends after it with an exit code.

mod comets;
mod environment;
mod policies;
mod screen;
mod tour;

use std::path::PathBuf;

use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, runtime, usage};
use crate::telemetry;

use environment::DemoEnvironment;
use policies::BundledPolicies;
use screen::Screen;

/// Arguments of `halley demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ends after the tour; the exit code is 0 if every step passed.
    #[arg(long)]
    once: bool,
    /// The folder with the built policies [default: plugins/dist, here or next to the binary].
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Also shows the gateway's log at this level (`warn`, `info`, `debug`).
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    log: String,
    /// Does not pause between the steps.
    #[arg(long)]
    fast: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Some(built) = BundledPolicies::find(args.plugins.as_deref()) else {
        return usage(
            "the demo needs the built policies; run `make plugins`, or pass their folder with --plugins",
        );
    };
    telemetry::init(&telemetry::Config { level: args.log.clone(), ..Default::default() })?;
    runtime()?.block_on(show(args, built))
}

async fn show(args: Args, built: BundledPolicies) -> anyhow::Result<u8> {
    let screen = Screen::new(!args.fast && !args.once);
    let mut environment = DemoEnvironment::start(built).await?;
    let passed = tokio::select! {
        passed = tour::run(&mut environment, &screen) => passed?,
        _ = tokio::signal::ctrl_c() => return stop(environment, true).await,
    };
    if args.once {
        return stop(environment, passed).await;
    }
    tour::print_hints(&environment, &screen);
    tokio::select! {
        result = tour::keep_running(&mut environment, &screen) => result?,
        _ = tokio::signal::ctrl_c() => {}
    }
    screen.line("");
    stop(environment, passed).await
}

async fn stop(environment: DemoEnvironment, passed: bool) -> anyhow::Result<u8> {
    let drained = environment.stop().await;
    Ok(if passed && drained { EXIT_SUCCESS } else { EXIT_FAILURE })
}
