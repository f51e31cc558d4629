//! `halley history`: reads the histories of rooms, directly in Redis.

use std::time::{Duration, UNIX_EPOCH};

use clap::Subcommand;
use prometheus_client::registry::Registry;

use crate::api::view::PageView;
use crate::cli::page_args::PageArgs;
use crate::cli::{ConfigArgs, EXIT_SUCCESS, block_on, print, print_json, usage};
use crate::gateway::Storage;
use crate::history::RoomHistoryReader;
use crate::inbox::{Cursor, Page, PageEntry};
use crate::message::RoomId;

/// Arguments of `halley history`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the messages of a room, oldest first.
    Read(ReadArgs),
}

#[derive(Debug, clap::Args)]
struct ReadArgs {
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

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Command::Read(args) = args.command;
    let config = args.config.load()?;
    let room = RoomId::from(args.room.as_str());
    let query = args.page.query(|text| Cursor::decode(text, &room))?;
    block_on(async {
        let Some(client) = Storage::open(&config, &mut Registry::default())?.redis else {
            return usage("`[redis] url` is memory://, which keeps no history");
        };
        let page = RoomHistoryReader::new(client, &config.history).page(&room, &query).await?;
        if args.json {
            print_json(&serde_json::to_string(&PageView::new(&page, &room))?);
        } else {
            show(&page, &room, args.page.backwards);
        }
        Ok(EXIT_SUCCESS)
    })
}

fn show(page: &Page, room: &RoomId, backwards: bool) {
    if page.truncated {
        print("earlier messages are no longer kept");
    }
    page.entries.iter().for_each(|entry| print(&line(entry)));
    match page.next {
        Some(next) if page.more => {
            let option = if backwards { "--backwards --before" } else { "--after" };
            print(&format!("more: halley history read {room} {option} {}", next.encode(room)));
        }
        _ if page.entries.is_empty() => print(&format!("nothing is kept for room `{room}` there")),
        Some(next) => print(&format!("end: {}", next.encode(room))),
        None => {}
    }
}

/// When it was stored, its operation and id, and the body.
fn line(PageEntry { position, message }: &PageEntry) -> String {
    let stored = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(position.ms));
    let body = match std::str::from_utf8(&message.body) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("({} bytes)", message.body.len()),
    };
    format!("{stored}  op {}  {}  {body}", message.operation, message.id)
}
