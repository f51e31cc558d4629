//! Connections that join rooms and leave them again, as comets write it, and what that costs Redis.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::producer::room_name;
use crate::rows::Scenario;

/// The interval between pipelines.
const PACE: Duration = Duration::from_millis(10);
/// How many pipelines later those that joined leave.
const STAY: usize = 10;

/// Joins and leaves, until this is dropped.
pub(crate) struct Churn {
    redis: MultiplexedConnection,
    _task: JoinSet<()>,
}

impl Churn {
    /// Starts what the scenario wants; for none, this only measures Redis.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn start(url: &str, scenario: &Scenario, comet: SocketAddr) -> anyhow::Result<Self> {
        let redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        let mut task = JoinSet::new();
        if scenario.joins > 0 {
            task.spawn(join_and_leave(redis.clone(), scenario.joins, scenario.rooms, comet.to_string()));
        }
        Ok(Self { redis, _task: task })
    }

    /// The CPU time of Redis so far.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn cpu_of_redis(&self) -> anyhow::Result<Duration> {
        let text: String = redis::cmd("INFO").arg("cpu").query_async(&mut self.redis.clone()).await?;
        let seconds = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse::<f64>().ok()).context("INFO without CPU times")
        };
        Ok(Duration::from_secs_f64(seconds("used_cpu_user")? + seconds("used_cpu_sys")?))
    }
}

async fn join_and_leave(mut redis: MultiplexedConnection, per_second: usize, rooms: usize, comet: String) {
    let at_once = (per_second as f64 * PACE.as_secs_f64()) as usize;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for turn in 0_usize.. {
        pace.tick().await;
        let mut pipe = redis::pipe();
        for number in 0..at_once {
            let room = room_name((turn * at_once + number) % rooms);
            let id = |turn: usize| format!("joiner-{turn}-{number}");
            let info = [("comet_id", comet.as_str()), ("user_id", &id(turn)), ("room_id", &room)];
            pipe.hset_multiple(format!("connection:info:{}", id(turn)), &info).ignore();
            pipe.sadd(format!("room:connections:{room}"), id(turn)).ignore();
            if let Some(gone) = turn.checked_sub(STAY) {
                let room = room_name((gone * at_once + number) % rooms);
                pipe.srem(format!("room:connections:{room}"), id(gone)).ignore();
                pipe.del(format!("connection:info:{}", id(gone))).ignore();
            }
        }
        if pipe.query_async::<()>(&mut redis).await.is_err() {
            return;
        }
    }
}
