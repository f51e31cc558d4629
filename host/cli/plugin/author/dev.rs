//! `halley plugin dev`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cli::plugin::author::plugin_under_test::PluginUnderTest;
use crate::cli::plugin::author::project::{CallLimits, EngineArgs, PolicyPath};
use crate::cli::plugin::author::test::check;
use crate::cli::plugin::author::{cases, language};
use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::push;
use crate::cli::{EXIT_SUCCESS, fail, print, runtime, usage};

/// How often files are checked for changes.
const INTERVAL: Duration = Duration::from_millis(300);
/// Build output, which is not source.
const BUILT: [&str; 2] = ["target", "dist"];
/// No policy has more files than this.
const MOST_FILES: usize = 10_000;

/// Arguments of `halley plugin dev`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    place: PolicyPath,
    #[command(flatten)]
    limits: CallLimits,
    #[command(flatten)]
    engine: EngineArgs,
    /// Pushes a build that passes its cases to the gateway at --gateway.
    #[arg(long)]
    push: bool,
    /// The configured plugin to push to. Default: the one named like the file.
    #[arg(long, value_name = "NAME", requires = "push")]
    name: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let folder = args.place.folder();
    if !folder.join("Cargo.toml").is_file() && !language::is_project(&folder) {
        return usage(&format!(
            "no Cargo.toml in {}; `halley plugin new NAME` creates a project",
            folder.display()
        ));
    }
    let runtime = runtime()?;
    let mut stop = runtime.spawn(tokio::signal::ctrl_c());
    let mut seen = Snapshot::new();
    loop {
        let now = snapshot(&folder);
        if now != seen {
            seen = now;
            if let Err(error) = round(&args) {
                fail(&format!("{error:#}"));
            }
            print("waiting for changes; Ctrl-C to exit");
        }
        let stopped = runtime.block_on(async { tokio::time::timeout(INTERVAL, &mut stop).await.is_ok() });
        if stopped {
            return Ok(EXIT_SUCCESS);
        }
    }
}

/// Builds, tests and pushes once.
fn round(args: &Args) -> anyhow::Result<()> {
    let built = args.place.policy()?;
    if let Ok(file) = args.place.cases() {
        let holds = {
            let mut under_test = PluginUnderTest::new(&built, args.limits, args.engine.config()?)?;
            check(&cases::read(&file)?, &mut under_test)? == EXIT_SUCCESS
        };
        if !holds {
            print("the build is discarded");
            return Ok(());
        }
    } else {
        print("no cases (cases.toml): nothing is tested");
    }
    let policy = args.place.put_in_place(&built)?;
    print(&format!("built {}", policy.display()));
    if args.push {
        push::push(&[policy], args.name.as_deref(), &args.gateway)?;
    }
    Ok(())
}

/// The files of a project, with their times and sizes.
type Snapshot = BTreeMap<PathBuf, (SystemTime, u64)>;

fn snapshot(folder: &Path) -> Snapshot {
    let mut files = Snapshot::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        // A file that vanishes meanwhile is noticed the next time.
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name();
            let is_built = BUILT.iter().any(|built| name == **built);
            let is_hidden = name.as_encoded_bytes().starts_with(b".");
            if metadata.is_dir() && !is_built && !is_hidden {
                folders.push(entry.path());
            } else if metadata.is_file() && !is_hidden && name != "Cargo.lock" && files.len() < MOST_FILES {
                let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.insert(entry.path(), (changed, metadata.len()));
            }
        }
    }
    files
}
