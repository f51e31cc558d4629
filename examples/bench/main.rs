//! The cost of a message in the gateway, compared with the least possible cost, in one run on one
//! machine: `make bench`.
//!
//! The gateway is the real binary in its own process, and its CPU time is measured. Kafka and Redis
//! are real. Comets are bare HTTP/2 servers in this process, which answer and count. Floors are child
//! processes of this binary that do only the indispensable work: read the same topic, make the same
//! calls. The arms of a row alternate in rounds, so that a busy machine slows all of them; figures are
//! medians over the rounds. Nothing is asserted: the table shows each figure, its goal, and whether it
//! was met.
//!
//! - `rows`: the measurements, as data. New rows are added there.
//! - `arms`: runs one arm of a row.
//! - `world`: the servers, topics and comets that arms use.
//! - `table`: medians, ratios, the table, JSON.
//!
//! Everything listens on loopback and lives in temporary folders, and ends with this process,
//! however that ends.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod arms;
mod child;
mod comets;
mod cpu;
mod floors;
mod gateway;
mod joins;
mod producer;
mod rows;
mod servers;
mod streams;
mod table;
mod window;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use rows::Row;
use table::Results;
use world::World;

/// The allocator of the gateway's binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the gateway against the least possible cost of its work.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    floor: Option<Floor>,
    #[command(flatten)]
    options: Options,
}

/// What to measure, and how often.
#[derive(Args)]
struct Options {
    /// How many rounds; figures are medians over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measures only this row; may be given several times.
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
    /// Small sizes, and one round unless --rounds is given: checks that it runs, with rough figures.
    #[arg(long)]
    quick: bool,
    /// Prints JSON with the figures of every round instead of a table.
    #[arg(long)]
    json: bool,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// The gateway's binary; by default the one that was built next to this program.
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// Another gateway binary, which alternates with it: shows the effect of a change.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

/// The tasks of the child processes.
#[derive(Subcommand)]
enum Floor {
    /// A bare loop of unary calls.
    #[command(name = "floor-calls", hide = true)]
    Calls(floors::Calls),
    /// A bare drain of a topic.
    #[command(name = "floor-drain", hide = true)]
    Drain(floors::Drain),
    /// One call for each record of a topic.
    #[command(name = "floor-direct", hide = true)]
    Direct(floors::Direct),
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { floor, options } = Arguments::parse();
    match floor {
        Some(Floor::Calls(calls)) => calls.run()?,
        Some(Floor::Drain(drain)) => drain.run()?,
        Some(Floor::Direct(direct)) => direct.run()?,
        None if options.list => list(),
        None => return bench(&options),
    }
    Ok(ExitCode::SUCCESS)
}

fn list() {
    for row in rows::ROWS {
        println!("{:<12} {}", row.name, row.about);
    }
}

/// All chosen rows, round by round.
fn bench(options: &Options) -> anyhow::Result<ExitCode> {
    let rows = chosen(&options.rows)?;
    let rounds = if options.quick && options.rounds == 5 { 1 } else { options.rounds.max(1) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut results = Results::default();
    let mut world = World::start(options.gateway.clone(), options.before.clone(), options.quick)?;
    for round in 1..=rounds {
        for row in &rows {
            for (at, arm) in row.arms.iter().enumerate() {
                for version in world.versions(arm) {
                    world.version = version;
                    let begun = Instant::now();
                    let result = runtime.block_on(arms::run(&mut world, arm));
                    let (arms, took) = (row.arms.len(), begun.elapsed());
                    eprintln!("round {round}/{rounds}: {}, {} of {arms}: {took:.1?}", row.name, at + 1);
                    match result {
                        Ok(figures) => results.add(row.name, at, version, figures),
                        Err(why) => results.failed(row.name, format!("{why:#}")),
                    }
                }
            }
        }
    }
    if options.json {
        println!("{:#}", table::json(&rows, &results, &world, rounds));
    } else {
        table::print(&rows, &results, &world, rounds);
    }
    Ok(if results.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Row>> {
    let find = |name: &String| {
        let found = rows::ROWS.iter().find(|row| row.name == name);
        found.with_context(|| format!("there is no row `{name}`; --list shows them"))
    };
    if names.is_empty() { Ok(rows::ROWS.iter().collect()) } else { names.iter().map(find).collect() }
}
