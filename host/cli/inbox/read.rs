//! `halley inbox read`.

use crate::cli::EXIT_SUCCESS;
use crate::cli::inbox::args::{InboxArgs, reader, unavailable};
use crate::cli::page_args::PageArgs;
use crate::config::Config;
use crate::inbox::Cursor;

/// Arguments of `halley inbox read`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    #[command(flatten)]
    page: PageArgs,
}

pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<u8> {
    let user = args.inbox.user();
    let query = args.page.query(|text| Cursor::decode(text, &user))?;
    let page = reader(config)?.page(&user, &query).await.map_err(unavailable)?;
    args.page.show(page, (&user).into(), args.inbox.json)?;
    Ok(EXIT_SUCCESS)
}
