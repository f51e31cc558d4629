//! The binary: arguments, one command, exit code.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    halley::cli::Cli::parse().run()
}
