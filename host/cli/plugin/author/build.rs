//! `halley plugin build`.

use std::path::PathBuf;

use prometheus_client::registry::Registry;

use crate::cli::plugin::author::inspect::{read_and_inspect, summary};
use crate::cli::plugin::author::project;
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, fail, print_lines};
use crate::wasm::Runtime;

/// Arguments of `halley plugin build`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The project directory.
    #[arg(value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let built = project::build(&args.folder, false)?;
    anyhow::ensure!(!built.is_empty(), "nothing was built: `[lib]` needs `crate-type = [\"cdylib\"]`");
    let runtime = Runtime::new(&mut Registry::default())?;
    let mut code = EXIT_SUCCESS;
    for built in built {
        let inspected = read_and_inspect(&runtime, &built)?;
        if let Some(why) = &inspected.refused {
            print_lines(summary(&built, &inspected));
            fail(&format!("a gateway would refuse it: it {why}"));
            code = EXIT_FAILURE;
            continue;
        }
        print_lines(summary(&project::put_in_place(&args.folder, &built)?, &inspected));
    }
    Ok(code)
}
