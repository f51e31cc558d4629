//! `halley inbox read`.

use std::time::{Duration, UNIX_EPOCH};

use crate::api::view::PageView;
use crate::cli::inbox::args::{InboxArgs, reader, unavailable};
use crate::cli::page_args::PageArgs;
use crate::cli::{EXIT_SUCCESS, print, print_json};
use crate::config::Config;
use crate::inbox::{Cursor, Page, PageEntry};
use crate::message::UserId;

/// Arguments of `halley inbox read`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    #[command(flatten)]
    page: PageArgs,
}

pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<u8> {
    let user = args.inbox.user();
    let query = args.page.query(|text| Cursor::decode(text, &user))?;
    let page = reader(config)?.page(&user, &query).await.map_err(unavailable)?;
    if args.inbox.json {
        print_json(&serde_json::to_string(&PageView::new(&page, &user))?);
    } else {
        show(&page, &user, args.page.backwards);
    }
    Ok(EXIT_SUCCESS)
}

fn show(page: &Page, user: &UserId, backwards: bool) {
    if page.truncated {
        print("earlier messages are no longer kept");
    }
    if let Some(warning) = page.warning {
        print(&format!("warning: {warning}"));
    }
    for entry in &page.entries {
        print(&line(entry));
    }
    match (page.entries.is_empty(), page.more, page.next) {
        (_, true, Some(next)) => {
            let option = if backwards { "--backwards --before" } else { "--after" };
            print(&format!("more: halley inbox read {user} {option} {}", next.encode(user)));
        }
        (true, ..) => print(&format!("nothing is kept for `{user}` there")),
        (false, false, Some(next)) => print(&format!("end: {}", next.encode(user))),
        (false, _, None) => {}
    }
}

/// When it was stored, its operation, room and id, and the body.
fn line(PageEntry { position, message }: &PageEntry) -> String {
    let stored = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(position.ms));
    let room = message.room.as_ref().map_or("-", |room| room.as_str());
    let body = match std::str::from_utf8(&message.body) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("({} bytes)", message.body.len()),
    };
    format!("{stored}  op {}  {room}  {}  {body}", message.operation, message.id)
}
