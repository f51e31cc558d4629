//! `halley plugin wit`.

use std::path::PathBuf;

use crate::cli::common;
use crate::cli::plugin::author::sdk;
use crate::cli::{EXIT_SUCCESS, OrUsage as _, print, print_lines};

/// Arguments of `halley plugin wit`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Writes policy.wit into this directory, for bindings generators. Default: prints it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let Some(folder) = args.out else {
        print_lines(sdk::CONTRACT.lines());
        return Ok(EXIT_SUCCESS);
    };
    let file = folder.join("policy.wit");
    common::write(&file, sdk::CONTRACT).or_usage()?;
    print(&file.display().to_string());
    Ok(EXIT_SUCCESS)
}
