//! `halley inbox`: reads, replays, acknowledges and deletes what absent users have missed. It works on
//! Redis and the comets directly, as `halley.toml` names them: no gateway and no `[api]` is needed.

mod args;
mod change;
mod read;
mod replay;

use clap::Subcommand;

use crate::cli::block_on;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows a user's messages, oldest first.
    Read(read::Args),
    /// Shows where an inbox stands, and what a device has acknowledged.
    Position(change::PositionArgs),
    /// Records that a device has seen everything up to a cursor. It only moves forward.
    Ack(change::AckArgs),
    /// Pushes a user's messages through the comet that the user is connected to.
    ///
    /// In order, marked as replayed, with the messages' ids, until the end or the first message that
    /// the comet does not accept. Repeats are possible: comets and clients drop them by id.
    Replay(replay::Args),
    /// Deletes a user's messages and the positions of the user's devices.
    Delete(change::DeleteArgs),
}

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    let shared = match &command {
        Command::Read(args) => &args.inbox,
        Command::Position(args) => &args.inbox,
        Command::Ack(args) => &args.inbox,
        Command::Replay(args) => &args.inbox,
        Command::Delete(args) => &args.inbox,
    };
    let config = shared.config.load()?;
    block_on(async {
        match &command {
            Command::Read(args) => read::run(&config, args).await,
            Command::Position(args) => change::position(&config, args).await,
            Command::Ack(args) => change::acknowledge(&config, args).await,
            Command::Replay(args) => replay::run(&config, args).await,
            Command::Delete(args) => change::delete(&config, args).await,
        }
    })
}
