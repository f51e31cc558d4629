//! `halley inbox position`, `ack` and `delete`.

use crate::api::view;
use crate::cli::inbox::args::{InboxArgs, device, reader, unavailable};
use crate::cli::{EXIT_SUCCESS, OrUsage as _, print, print_json, usage};
use crate::config::Config;
use crate::gateway::{Erased, Erasure};
use crate::inbox::{Cursor, Standing};
use crate::message::UserId;

/// Arguments of `halley inbox position`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PositionArgs {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    /// The device whose acknowledged position is shown.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// Arguments of `halley inbox ack`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct AckArgs {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    /// The device.
    #[arg(long, value_name = "NAME")]
    device: String,
    /// The cursor of the last message that it has seen.
    #[arg(long, value_name = "CURSOR")]
    cursor: String,
}

/// Arguments of `halley inbox delete`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeleteArgs {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    /// Deletes without asking further. Deleted messages cannot be restored.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn position(config: &Config, args: &PositionArgs) -> anyhow::Result<u8> {
    let (user, reader) = (args.inbox.user(), reader(config)?);
    let device = args.device.as_deref().map(device).transpose()?;
    let standing = reader.standing(&user, device.as_ref()).await.map_err(unavailable)?;
    show(&standing, &user, args.inbox.json)
}

pub(super) async fn acknowledge(config: &Config, args: &AckArgs) -> anyhow::Result<u8> {
    let (user, reader) = (args.inbox.user(), reader(config)?);
    let device = device(&args.device)?;
    let cursor = Cursor::decode(&args.cursor, &user).map_err(|why| anyhow::anyhow!("--cursor: {why}"));
    let standing = match cursor.or_usage()? {
        Cursor::At(position) => reader.acknowledge(&user, &device, position).await,
        Cursor::Before(_) => reader.standing(&user, Some(&device)).await,
    };
    show(&standing.map_err(unavailable)?, &user, args.inbox.json)
}

pub(super) async fn delete(config: &Config, args: &DeleteArgs) -> anyhow::Result<u8> {
    let user = args.inbox.user();
    if !args.yes {
        return usage(&format!("this deletes all messages of `{user}`; repeat it with --yes"));
    }
    let Erased { inbox, archive } = Erasure::new(config).or_usage()?.erase(&*reader(config)?, &user).await?;
    if args.inbox.json {
        print_json(&serde_json::json!({ "deleted": inbox, "archived": archive }).to_string());
    } else {
        print(&format!("deleted {inbox} messages of `{user}` from the inbox and {archive} from the archive"));
    }
    Ok(EXIT_SUCCESS)
}

fn show(standing: &Standing, user: &UserId, json: bool) -> anyhow::Result<u8> {
    if json {
        print_json(&serde_json::to_string(&view::position(standing, user))?);
        return Ok(EXIT_SUCCESS);
    }
    let text = |cursor: Option<Cursor>| cursor.map_or_else(|| "-".to_owned(), |cursor| cursor.encode(user));
    print(&format!("kept          {}", standing.kept));
    print(&format!("first         {}", text(standing.first)));
    print(&format!("last          {}", text(standing.last)));
    print(&format!("acknowledged  {}", text(standing.acknowledged)));
    Ok(EXIT_SUCCESS)
}
