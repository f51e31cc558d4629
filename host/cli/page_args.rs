//! Which page of an inbox or of a room's history a command shows, and how.

use std::time::{Duration, UNIX_EPOCH};

use crate::api::view;
use crate::cli::{OrUsage as _, print, print_json};
use crate::inbox::{Cursor, CursorError, Owner, Page, PageEntry, PageQuery};

/// The options of commands that read pages.
#[derive(Debug, clap::Args)]
pub(super) struct PageArgs {
    /// Only what follows this cursor.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Only what precedes this cursor.
    #[arg(long, value_name = "CURSOR")]
    before: Option<String>,
    /// Messages at most; 500 is the most.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// The newest first.
    #[arg(long)]
    backwards: bool,
}

impl PageArgs {
    /// The query; `decode` reads the cursors of the inbox or the history.
    ///
    /// # Errors
    /// When a cursor is invalid or belongs to another owner: a mistake of the caller.
    pub(super) fn query(
        &self,
        decode: impl Fn(&str) -> Result<Cursor, CursorError>,
    ) -> anyhow::Result<PageQuery> {
        let cursor = |option: &str, text: Option<&str>| {
            text.map(&decode).transpose().map_err(|why| anyhow::anyhow!("{option}: {why}")).or_usage()
        };
        Ok(PageQuery {
            after: cursor("--after", self.after.as_deref())?,
            before: cursor("--before", self.before.as_deref())?,
            limit: self.limit.into(),
            backwards: self.backwards,
            ..PageQuery::default()
        })
    }

    /// Prints the page, as text or as the HTTP API does.
    pub(super) fn show(&self, page: Page, owner: Owner<'_>, json: bool) -> anyhow::Result<()> {
        if json {
            print_json(&serde_json::to_string(&view::page(page, owner))?);
            return Ok(());
        }
        if page.truncated {
            print("some messages are no longer kept");
        }
        if let Some(warning) = page.warning {
            print(&format!("warning: {warning}"));
        }
        page.entries.iter().for_each(|entry| print(&line(entry, owner)));
        let (command, id) = match owner {
            Owner::User(user) => ("inbox", user.as_str()),
            Owner::Room(room) => ("history", room.as_str()),
        };
        match page.next.map(|next| next.encode(owner)) {
            Some(next) if page.more => {
                let option = if self.backwards { "--backwards --before" } else { "--after" };
                print(&format!("more: halley {command} read {id} {option} {next}"));
            }
            _ if page.entries.is_empty() => print(&format!("nothing is kept for `{id}` there")),
            Some(next) => print(&format!("end: {next}")),
            None => {}
        }
        Ok(())
    }
}

/// When it was stored, its operation, room and id, and the body.
fn line(PageEntry { position, message }: &PageEntry, owner: Owner<'_>) -> String {
    let stored = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(position.ms));
    let body = match std::str::from_utf8(&message.body) {
        _ if message.is_missing() => "(not in the history of its room)".to_owned(),
        Ok(text) => text.to_owned(),
        Err(_) => format!("({} bytes)", message.body.len()),
    };
    let room = match owner {
        Owner::User(_) => format!("  {}", message.room.as_ref().map_or("-", |room| room.as_str())),
        Owner::Room(_) => String::new(),
    };
    format!("{stored}  op {}{room}  {}  {body}", message.operation, message.id)
}
