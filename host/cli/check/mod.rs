//! `halley check`: every mistake of configuration and plugins, without starting anything.

use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::cli::fleet::look_at_fleet;
use crate::cli::{ConfigArgs, FAILURE, MISTAKE, SUCCESS, fail, print, runtime};
use crate::config::Config;
use crate::decision::PluginVersion;
use crate::gateway::Storage;
use crate::kafka::Producer;
use crate::policy::{self, Policies};

/// Arguments of `halley check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also asks the directory (Redis) whether it is there and how rooms are read.
    #[arg(long)]
    connect: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let (config, mistakes) = Config::inspect(args.config.config.as_deref());
    let mut lines: Vec<_> = mistakes.iter().map(|m| format!("{}: {}", m.place, m.text)).collect();
    // librdkafka knows its properties; making a client needs no network.
    if let Err(error) = Producer::new(&config.kafka) {
        lines.push(format!("`kafka.properties`: {error:#}"));
    }
    lines.extend(config.comets.discovery.file_problem());
    let versions = match plugins(&config) {
        Ok(versions) => versions,
        Err(problems) => {
            lines.extend(problems);
            Vec::new()
        }
    };
    if !lines.is_empty() {
        lines.iter().for_each(|line| fail(line));
        fail(&format!("{} found", count(lines.len(), "mistake")));
        return Ok(MISTAKE);
    }
    let names: Vec<_> = versions.iter().map(PluginVersion::to_string).collect();
    print(&format!("configuration and {} are in order", count(names.len(), "plugin")));
    names.iter().for_each(|name| print(&format!("  {name}")));
    if !config.comets.names_comets() && !args.connect {
        print(
            "no comet is configured: broadcasts reach those that the directory has named to a gateway lately; --connect shows them",
        );
    }
    if args.connect { runtime()?.block_on(connect(&config)) } else { Ok(SUCCESS) }
}

fn plugins(config: &Config) -> Result<Vec<PluginVersion>, Vec<String>> {
    let one = |error: anyhow::Error| vec![format!("{error:#}")];
    let runtime =
        policy::Runtime::with_intake(&mut Registry::default(), config.policies.intake()).map_err(one)?;
    let wanted = config.plugins().map_err(one)?;
    match Policies::start(runtime, &wanted) {
        Ok(policies) => {
            // A gateway starts without them; whoever asks here wants to know.
            let left_out: Vec<_> = policies.status().left_out.iter().map(ToString::to_string).collect();
            if left_out.is_empty() { Ok(policies.current().versions().to_vec()) } else { Err(left_out) }
        }
        Err(refused) => Err(refused.problems.iter().map(ToString::to_string).collect()),
    }
}

async fn connect(config: &Config) -> anyhow::Result<u8> {
    let (config, mut registry) = (config.gateway()?, Registry::default());
    let storage = Storage::open(&config, &mut registry)?;
    let check = storage.check(config.writes_to_redis());
    match tokio::time::timeout(Duration::from_secs(10), check).await {
        Ok(Ok(how)) => {
            print(&format!("the directory answers: {how}"));
            let fleet = look_at_fleet(&config, &storage, &mut registry).await;
            let reach = fleet.reach();
            print(&reach.to_string());
            reach.caveat().iter().for_each(|caveat| print(&format!("  {caveat}")));
            let warnings = fleet.warnings();
            warnings.iter().for_each(|warning| fail(warning));
            Ok(if warnings.is_empty() { SUCCESS } else { FAILURE })
        }
        Ok(Err(error)) => {
            fail(&error.to_string());
            Ok(FAILURE)
        }
        Err(_) => {
            fail("the directory did not answer within 10 s; check `[redis] url`");
            Ok(FAILURE)
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
