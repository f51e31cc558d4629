//! `halley compile-plugin`: the process in which a gateway has a plugin compiled. Not for people.

use crate::wasm::{Job, compile_plugin};

/// Arguments of `halley compile-plugin`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The size of the component on standard input, in bytes.
    #[arg(long)]
    size: u64,
    /// The most memory, in bytes.
    #[arg(long)]
    memory: u64,
    /// The most seconds of processor time.
    #[arg(long)]
    seconds: u64,
    /// The process that wants the code: this one ends with it.
    #[arg(long)]
    parent: i32,
    /// A feature of WebAssembly that is on.
    #[arg(long = "feature")]
    features: Vec<String>,
    /// For a process with little address space.
    #[arg(long)]
    tight: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Args { size, memory, seconds, parent, features, tight } = args;
    Ok(compile_plugin(&Job { size, memory, seconds, parent, features, tight }))
}
