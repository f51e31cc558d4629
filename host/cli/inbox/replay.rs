//! `halley inbox replay`.

use prometheus_client::registry::Registry;

use crate::api::view::ReplayedView;
use crate::cli::inbox::args::{InboxArgs, device, storage};
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, fail, print, print_json};
use crate::config::Config;
use crate::gateway;
use crate::inbox::{Cursor, PageQuery};
use crate::message::ConnectionId;
use crate::pipeline::Pusher;
use crate::replay::{Replayed, Replayer};

/// Arguments of `halley inbox replay`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) inbox: InboxArgs,
    /// One of the user's connections. Default: the one that the directory names.
    #[arg(long, value_name = "ID")]
    connection: Option<String>,
    /// Begins after what this device has acknowledged.
    #[arg(long, value_name = "NAME", conflicts_with = "after")]
    device: Option<String>,
    /// Begins after this cursor. Default: with the oldest message.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Moves the device's position to the last message that was pushed.
    #[arg(long, requires = "device")]
    acknowledge: bool,
}

pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<u8> {
    let user = args.inbox.user();
    let device = args.device.as_deref().map(device).transpose()?;
    let mut query = PageQuery { limit: 500, ..PageQuery::default() };
    query.after = args.inbox.cursor("--after", args.after.as_deref())?;
    let connection = args.connection.as_deref().map(ConnectionId::from);

    let mut registry = Registry::default();
    let storage = storage(config)?;
    let fleet = gateway::observe_fleet(config, &storage, &mut registry).await?;
    let resolver = gateway::resolver(config, &storage, &fleet, &mut registry);
    let reader = &*storage.inbox_reader;
    let replayer =
        Replayer { reader, pusher: Pusher { resolver: &resolver, fleet: &fleet }, only_missed: false };
    if let Some(device) = &device {
        query.after = reader.standing(&user, Some(device)).await?.acknowledged;
    }
    let mut pushed = 0;
    loop {
        let mut replayed = replayer.replay(&user, connection.as_ref(), &query).await?;
        pushed += replayed.pushed;
        if let (true, Some(device), Some(Cursor::At(position))) = (args.acknowledge, &device, replayed.next) {
            reader.acknowledge(&user, device, position).await?;
        }
        if replayed.more && replayed.stopped.is_none() {
            query.after = replayed.next;
            continue;
        }
        replayed.pushed = pushed;
        fleet.close().await;
        return show(&replayed, args);
    }
}

fn show(replayed: &Replayed, args: &Args) -> anyhow::Result<u8> {
    let user = args.inbox.user();
    if args.inbox.json {
        print_json(&serde_json::to_string(&ReplayedView::new(replayed, &user))?);
    } else {
        let Replayed { pushed, connection, .. } = replayed;
        print(&format!("pushed {pushed} messages to connection `{connection}` of `{user}`"));
        if let Some(warning) = replayed.warning {
            print(&format!("warning: {warning}"));
        }
    }
    let Some(why) = &replayed.stopped else { return Ok(EXIT_SUCCESS) };
    let next = replayed.next.map_or_else(String::new, |next| format!(" --after {}", next.encode(&user)));
    fail(&format!(
        "stopped: {why}; once the comet is reachable, continue with `halley inbox replay {user}{next}`"
    ));
    Ok(EXIT_FAILURE)
}
