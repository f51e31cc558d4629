//! `halley demo`: everything in one process, with nothing to install: a Kafka (librdkafka's built-in
//! broker), three example comets, the directory in memory, and the bundled policies.
//!
//! The tour checks its own results; `--once` ends after it with an exit code.

mod comets;
mod policies;
mod screen;
mod tour;
mod world;

use std::path::PathBuf;

use crate::cli::{FAILURE, MISTAKE, SUCCESS, fail, runtime};
use crate::telemetry;

use policies::Policies;
use screen::Screen;
use world::World;

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
    let Some(built) = Policies::find(args.plugins.as_deref()) else {
        fail("the demo needs the built policies; run `make plugins`, or pass their folder with --plugins");
        return Ok(MISTAKE);
    };
    telemetry::init(&telemetry::Config { level: args.log.clone(), ..Default::default() })?;
    runtime()?.block_on(show(args, built))
}

async fn show(args: Args, built: Policies) -> anyhow::Result<u8> {
    let screen = Screen::new(!args.fast && !args.once);
    let mut world = World::start(built).await?;
    let passed = tokio::select! {
        passed = tour::run(&mut world, &screen) => passed?,
        _ = tokio::signal::ctrl_c() => return stop(world, true).await,
    };
    if args.once {
        return stop(world, passed).await;
    }
    tour::invite(&world, &screen);
    tokio::select! {
        result = tour::keep_running(&mut world, &screen) => result?,
        _ = tokio::signal::ctrl_c() => {}
    }
    screen.line("");
    stop(world, passed).await
}

async fn stop(world: World, passed: bool) -> anyhow::Result<u8> {
    let drained = world.stop().await;
    Ok(if passed && drained { SUCCESS } else { FAILURE })
}
