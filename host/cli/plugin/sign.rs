//! `halley plugin sign`.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::artifact;
use crate::cli::plugin::signing::sign;
use crate::cli::{EXIT_SUCCESS, LARGEST_INPUT, print};
use crate::files;

/// Arguments of `halley plugin sign`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The plugin's file. The signature is written next to it, into FILE.sig.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The file with the ed25519 private key in PEM (`openssl genpkey -algorithm ed25519`), which
    /// must not be readable by others.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The plugin's name in the gateways' configuration.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The version number, from 1; higher than that of the previous version.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    number: u64,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Args { file, key, name, number } = args;
    let failed = |what: &PathBuf, why: String| anyhow::anyhow!("{} {why}", what.display());
    let bytes = files::read(&file, LARGEST_INPUT).map_err(|why| failed(&file, why.to_string()))?;
    let signature = sign(&key, &name, number, &bytes)?;
    let place = artifact::signature_file(&file);
    files::publish(&place, signature.as_bytes())
        .with_context(|| format!("{} cannot be written", place.display()))?;
    print(&format!("{}: version {number} of `{name}`", place.display()));
    Ok(EXIT_SUCCESS)
}
