//! Replays on return, if `[offline] replay` asks for them.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::gateway::parts::Storage;
use crate::inbox::{KeyEvents, ReplayTrigger, ReturnedUsers};
use crate::panics;
use crate::pipeline::Pipeline;
use crate::redis_client;
use crate::replay::{self, Registrations, ReplayOnReturn, ReplayTiming};

/// Starts the task. Returns what it warns of; `None` if it is not configured.
///
/// # Errors
/// If the URL of Redis is invalid.
pub(super) fn start(
    config: &Config,
    storage: &Storage,
    pipeline: &Arc<Pipeline>,
    registry: &mut Registry,
    (tasks, shutdown): (&TaskTracker, &CancellationToken),
) -> anyhow::Result<Option<watch::Receiver<Option<String>>>> {
    let Some(redis) = storage.redis.clone().filter(|_| config.offline.replay != ReplayTrigger::Off) else {
        return Ok(None);
    };
    let (registrations, queue) = Registrations::queue(replay::Metrics::register(registry));
    let events = follow(config, move |user| registrations.push(user))?;
    let timing = ReplayTiming {
        delay: config.offline.replay_delay,
        sweep_interval: config.offline.replay_sweep_interval,
    };
    let (task, warnings) = ReplayOnReturn::new(
        Arc::clone(pipeline),
        Arc::clone(&storage.inbox_reader),
        (ReturnedUsers::new(redis), events),
        queue,
        timing,
        (tasks.clone(), shutdown.clone()),
    );
    tasks.spawn(panics::abort_on_panic("replays on return", task.run()));
    Ok(Some(warnings))
}

/// Whether users who return can be noticed: what Redis publishes, or why it does not. `None` if that is not
/// configured.
pub async fn check_replay(config: &Config) -> Option<anyhow::Result<String>> {
    if config.redis.is_memory() || config.offline.replay == ReplayTrigger::Off {
        return None;
    }
    let events = match follow(config, |_| {}) {
        Ok(Some(events)) => events,
        Ok(None) => {
            let sweep = humantime::format_duration(config.offline.replay_sweep_interval);
            return Some(Ok(format!("in a cluster: by a sweep over the inboxes every {sweep}")));
        }
        Err(error) => return Some(Err(error.into())),
    };
    Some(match events.check().await {
        Ok(subscribed) => match subscribed.problem {
            Some(problem) => Err(anyhow::Error::msg(problem)),
            None => may_scan(config).await.map(|()| "redis publishes registrations of users".to_owned()),
        },
        Err(error) => Err(error.into()),
    })
}

/// Whether a sweep is permitted.
async fn may_scan(config: &Config) -> anyhow::Result<()> {
    if let Some(redis) = Storage::open(config, &mut Registry::default())?.redis {
        ReturnedUsers::new(redis).owners(redis_client::ScanCursor::default()).await?;
    }
    Ok(())
}

fn follow(
    config: &Config,
    on_registered: impl Fn(crate::message::UserId) + Send + Sync + 'static,
) -> Result<Option<KeyEvents>, redis_client::BadUrl> {
    // The client's own metrics are those of its other connections.
    let metrics = redis_client::Metrics::register(&mut Registry::default());
    ReturnedUsers::follow(&config.redis, metrics, on_registered)
}
