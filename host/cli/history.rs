//! `halley history`: reads the histories of rooms, directly in Redis and the archive.

use clap::Subcommand;
use prometheus_client::registry::Registry;

use crate::cli::page_args::PageArgs;
use crate::cli::{ConfigArgs, EXIT_SUCCESS, block_on, print, usage};
use crate::gateway::Storage;
use crate::inbox::Cursor;
use crate::message::RoomId;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows the messages of a room, oldest first.
    Read(ReadArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ReadArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The room's id.
    room: String,
    /// Prints JSON, as the HTTP API does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    page: PageArgs,
}

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    let Command::Read(args) = command;
    let config = args.config.load()?;
    let room = RoomId::from(args.room.as_str());
    let query = args.page.query(|text| Cursor::decode(text, &room))?;
    block_on(async {
        let Some(history) = Storage::open(&config, &mut Registry::default())?.history else {
            return usage("`[redis] url` is memory://, which keeps no history");
        };
        let page = history.page(&room, &query).await?;
        let is_empty = page.entries.is_empty();
        args.page.show(page, (&room).into(), args.json)?;
        if is_empty && !args.json && !config.history.covers(&room) {
            print("`[history] rooms` does not cover the room: it has only what a policy keeps");
        }
        Ok(EXIT_SUCCESS)
    })
}
