//! Explains where a message would go and why: the stages without their effects. No guard is
//! claimed, no comet called, nothing stored.

use serde::Serialize;
use std::cell::OnceCell;

use crate::comets::{BroadcastReach, Fleet};
use crate::decision::{Disposition, FilteredMessage, Guard, OfflineDecision, PluginVersion, Verdict};
use crate::inbox;
use crate::message::{Audience, CallTarget, CometAddr, Message, UserId};
use crate::pipeline::resolve::Resolver;
use crate::policy::{Chain, FilterProgress, FilterRun};
use crate::router::{Delivery, DeliveryPlan, Route};
use crate::shared_state::SharedState;

/// What would happen to a message.
#[derive(Debug, Default, Serialize)]
pub struct Explanation {
    /// Whom the message is for, after the filters.
    pub audience: String,
    /// The policies that ran, in order.
    pub policies: Vec<PluginVersion>,
    /// What each policy did, unless it passed.
    pub decisions: Vec<String>,
    /// What the filters decided.
    pub verdict: String,
    /// Guards that would be claimed.
    pub guards: Vec<String>,
    /// Where the message would be kept in addition to its delivery: `inbox` (of every recipient),
    /// `history` (of the room).
    pub retention: Vec<&'static str>,
    /// What the directory knows; absent if it was not queried.
    pub room: Option<RoomSummary>,
    /// The calls that would be made.
    pub calls: Vec<PlannedCall>,
    /// Recipients from whom a policy withholds the message.
    pub withheld: usize,
    /// Absent recipients, and what would happen to the message for them.
    pub absent: Vec<AbsentOutcome>,
    /// The comets that a BROADCAST reaches.
    pub reach: Option<BroadcastReach>,
    /// What this explanation cannot know.
    pub notes: Vec<String>,
}

/// What the directory knows of a room.
#[derive(Debug, Serialize)]
pub struct RoomSummary {
    /// Connections in the room.
    pub connections: usize,
    /// Members without connection information.
    pub stale: usize,
}

/// One call that would be made.
#[derive(Debug, Serialize)]
pub struct PlannedCall {
    /// The comet.
    pub comet: CometAddr,
    /// The gRPC method.
    pub method: &'static str,
    /// How many recipients it reaches, if known.
    pub recipients: usize,
    /// Why the call cannot be made; then the recipients count as unreachable.
    pub problem: Option<String>,
}

/// What would happen to the message for one absent recipient.
#[derive(Debug, Serialize)]
pub struct AbsentOutcome {
    /// The user.
    pub user: UserId,
    /// Why the user is not reached.
    pub cause: &'static str,
    /// `drop`, `store` or `notify <channel>`.
    pub disposition: String,
    /// The policy that decided, or `[offline] default`.
    pub by: String,
}

/// Runs a message through filters, look-ups, regrouping and offline decisions, without
/// delivering it.
///
/// # Errors
/// When the directory is unreachable, or a policy stalls.
pub async fn explain(
    message: Message,
    resolver: &Resolver,
    chain: &mut Chain,
    fleet: &Fleet,
    shared_state: &dyn SharedState,
    offline: &inbox::Config,
) -> anyhow::Result<Explanation> {
    let origin = message.record.origin.clone();
    let filtered = filter(&origin.topic, origin.partition, message, chain, shared_state).await?;
    let Some(FilteredMessage { message, verdict, overrides, guards, retention, trail }) = filtered else {
        anyhow::bail!("the filters returned no verdict");
    };
    let mut explanation = Explanation {
        audience: audience(&message.audience),
        policies: chain.set().versions().to_vec(),
        decisions: trail.iter().map(ToString::to_string).collect(),
        verdict: describe(&verdict),
        guards: guards
            .iter()
            .map(|Guard { key, ttl, by }| format!("{key} for {ttl:?}, asked by {by}"))
            .collect(),
        ..Explanation::default()
    };
    if verdict != Verdict::Pass {
        return Ok(explanation);
    }
    explanation.retention = retention.and(offline.retention_of(&message)).names();
    let resolved = resolver.resolve_uncached(&message, chain).await?;
    let address_of = |server: &str| fleet.address_of(server);
    let everyone = OnceCell::new();
    let known = || &**everyone.get_or_init(|| fleet.everyone());
    let (plan, route) = resolver.plan(&message, &resolved, known, address_of, &overrides);
    explanation.room = route.map(|route| room_summary(&route));
    explanation.withheld = plan.withheld;
    explanation.calls = plan.deliveries.iter().map(|delivery| call(fleet, delivery)).collect();
    if plan.is_for_every_comet {
        let reach = fleet.reach();
        explanation.notes = reach.caveat().into_iter().chain(fleet.warnings()).collect();
        explanation.reach = Some(reach);
    }
    explanation.absent = absent_outcomes(&message, &plan, chain, offline)?;
    Ok(explanation)
}

/// Runs the filters with their current shared state. Their writes are discarded.
async fn filter(
    topic: &str,
    partition: i32,
    message: Message,
    chain: &mut Chain,
    shared_state: &dyn SharedState,
) -> anyhow::Result<Option<FilteredMessage>> {
    let mut pass = FilterRun::new(chain.set().generation(), vec![message]);
    loop {
        match chain.advance(topic, partition, &mut pass)? {
            FilterProgress::Done(mut filtered, _) => return Ok(filtered.pop()),
            FilterProgress::NeedsState(keys) => {
                let values = shared_state.fetch(&keys).await?;
                pass.supply_state(keys, values);
            }
        }
    }
}

fn room_summary(route: &Route) -> RoomSummary {
    RoomSummary { connections: route.connections, stale: route.stale }
}

fn call(fleet: &Fleet, delivery: &Delivery) -> PlannedCall {
    let method = match delivery.target {
        CallTarget::Room(_) => "BroadcastRoom",
        CallTarget::Connections(_) => "PushMsg",
        CallTarget::Everyone { .. } => "Broadcast",
    };
    let (comet, recipients) = (delivery.comet.clone(), delivery.recipients.len());
    PlannedCall { problem: fleet.why_unusable(&comet, delivery.named_by), comet, method, recipients }
}

fn absent_outcomes(
    message: &Message,
    plan: &DeliveryPlan,
    chain: &mut Chain,
    offline: &inbox::Config,
) -> anyhow::Result<Vec<AbsentOutcome>> {
    if plan.absent.is_empty() {
        return Ok(Vec::new());
    }
    let decided = chain.decide(message, &plan.absent)?;
    let mut absent_outcomes = Vec::with_capacity(plan.absent.len());
    for (absent, decided) in plan.absent.iter().zip(decided) {
        let (decided, by) = match decided {
            Some(OfflineDecision { disposition, by }) => (Some(disposition), by.to_string()),
            None => (None, "[offline] default".to_owned()),
        };
        let disposition = match offline.disposition_of(absent, decided) {
            Disposition::Drop => "drop".to_owned(),
            Disposition::Store { .. } => "store".to_owned(),
            Disposition::Notify { channel } => format!("notify {channel}"),
        };
        absent_outcomes.push(AbsentOutcome {
            user: absent.user.clone(),
            cause: absent.cause.as_str(),
            disposition,
            by,
        });
    }
    Ok(absent_outcomes)
}

fn audience(audience: &Audience) -> String {
    match audience {
        Audience::Room(room) => format!("room {room}"),
        Audience::Everyone { .. } => "everyone".to_owned(),
        Audience::Keys { server: Some(server), keys } => format!("{} keys at {server}", keys.len()),
        Audience::Keys { server: None, keys } => format!("keys {}", keys.join(", ")),
    }
}

fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Pass => "pass".to_owned(),
        Verdict::Drop { reason, by } => format!("drop ({by}: {reason})"),
        Verdict::DeadLetter { reason, by } => format!("dead letter ({by}: {reason})"),
    }
}
