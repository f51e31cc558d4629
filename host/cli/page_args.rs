//! Which page of an inbox or of a room's history a command shows.

use crate::cli::OrUsage as _;
use crate::inbox::{Cursor, CursorError, PageQuery};

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
    pub(super) backwards: bool,
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
}
