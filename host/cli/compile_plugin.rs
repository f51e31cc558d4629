//! `halley compile-plugin`: the child process in which a gateway compiles a plugin. Internal.

use crate::wasm::{CompileJob, compile_plugin};

/// Arguments of `halley compile-plugin`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Size of the component on standard input, in bytes.
    #[arg(long)]
    size: u64,
    /// Memory limit, in bytes.
    #[arg(long)]
    memory: u64,
    /// CPU time limit, in seconds.
    #[arg(long)]
    seconds: u64,
    /// The parent process: this one ends with it.
    #[arg(long)]
    parent: i32,
    /// An enabled feature of WebAssembly.
    #[arg(long = "feature")]
    features: Vec<String>,
    /// For processes with a limited address space.
    #[arg(long)]
    tight: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Args { size, memory, seconds, parent, features, tight } = args;
    Ok(compile_plugin(&CompileJob { size, memory, seconds, parent, features, tight }))
}
