//! Pushes a message from an inbox to connections that are registered now, marked as replayed.
//!
//! The pipeline does so for users who return while a message is stored for them; `replay` does so for
//! everything in an inbox. The message keeps its id: a comet or client that has it already drops it.
//!
//! Calls to one connection reach it in the order of the pushes, behind what is queued for it. A push ends
//! at the latest when its call does; nothing is retried here, since the inbox still has the message.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::comets::{
    CallMessage, CallOutcome, CallRequest, Content, Fleet, OrderHold, Outcomes, PartialDelivery, Run,
};
use crate::directory::Unavailable;
use crate::membership::Connection;
use crate::message::{CallTarget, CometAddr, ConnectionId, MessageId, NamedBy, UserId};
use crate::pipeline::resolve::Resolver;

/// A message as it is pushed.
#[derive(Clone, Copy, Debug)]
pub struct PushedMessage<'a> {
    /// Its id.
    pub id: &'a MessageId,
    /// The protocol operation.
    pub operation: i32,
    /// The body.
    pub body: &'a bytes::Bytes,
    /// When it was produced, in milliseconds since 1970.
    pub sent_ms: i64,
}

/// The outcome for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The comet acknowledged it.
    Delivered,
    /// The connection is not registered, or the comet does not have it any more.
    NotConnected,
    /// The comet did not accept it, for this reason.
    Failed(String),
}

/// Finds connections and pushes to them.
#[derive(Clone, Copy)]
pub struct Pusher<'a> {
    /// Finds connections.
    pub resolver: &'a Resolver,
    /// The comets.
    pub fleet: &'a Fleet,
}

/// Calls to one comet that were sent, and the connections that each is for.
struct SentCall {
    connections: Vec<ConnectionId>,
    outcome: oneshot::Receiver<CallOutcome>,
}

/// Receives the outcome of one call. Dropping the receiver cancels a call that has not started.
#[derive(Debug)]
struct PushReply(Mutex<Option<oneshot::Sender<CallOutcome>>>);

impl PushReply {
    fn tell(&self, outcome: CallOutcome) {
        if let Some(reply) = self.0.lock().take() {
            // Fails if nobody waits any more.
            let _ = reply.send(outcome);
        }
    }
}

impl Outcomes for PushReply {
    fn not_acknowledged(&self, _: u32, _: usize, outcome: CallOutcome, _: Option<OrderHold>) {
        self.tell(outcome);
    }

    fn finish(self: Arc<Self>, _: Range<u32>) {
        self.tell(CallOutcome::Acknowledged);
    }

    fn is_cancelled(&self) -> bool {
        self.0.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl Pusher<'_> {
    /// The connection with which a user is registered, or this one of the user's connections; `None` if
    /// there is none.
    ///
    /// # Errors
    /// If the directory cannot be read now.
    pub async fn connection_of(
        &self,
        user: &UserId,
        connection: Option<&ConnectionId>,
    ) -> Result<Option<Connection>, Unavailable> {
        let key: Arc<str> = connection.map_or(user.as_str(), ConnectionId::as_str).into();
        let found = self.resolver.connections(&[key]).await?;
        Ok(found.into_iter().flatten().next().filter(|found| is_of(found, user)))
    }

    /// Pushes a message to the connections of these users; one outcome for each, in order.
    ///
    /// # Errors
    /// If the directory cannot be read now.
    pub(super) async fn push_to_users(
        &self,
        users: &[(UserId, ConnectionId)],
        message: PushedMessage<'_>,
    ) -> Result<Vec<PushOutcome>, Unavailable> {
        let keys: Vec<Arc<str>> = users.iter().map(|(_, connection)| connection.as_str().into()).collect();
        let found = self.resolver.connections(&keys).await?;
        let found = found.into_iter().zip(users).map(|(found, (user, _))| found.filter(|c| is_of(c, user)));
        Ok(self.push(&found.collect::<Vec<_>>(), message).await)
    }

    /// Pushes a message to these connections; one outcome for each, in order.
    pub async fn push(
        &self,
        connections: &[Option<Connection>],
        message: PushedMessage<'_>,
    ) -> Vec<PushOutcome> {
        let mut outcomes = HashMap::new();
        for SentCall { connections, outcome } in self.send(connections.iter().flatten(), message).await {
            match outcome.await {
                Ok(outcome) => note(&mut outcomes, connections, outcome),
                Err(_) => outcomes.extend(connections.into_iter().map(|id| (id, stopped()))),
            }
        }
        let outcome = |connection: &Option<Connection>| match connection {
            Some(connection) => outcomes.get(&connection.id).cloned().unwrap_or_else(stopped),
            None => PushOutcome::NotConnected,
        };
        connections.iter().map(outcome).collect()
    }

    /// Queues one call for each comet.
    async fn send(
        &self,
        connections: impl Iterator<Item = &Connection>,
        message: PushedMessage<'_>,
    ) -> Vec<SentCall> {
        let mut by_comet: HashMap<&CometAddr, Vec<ConnectionId>> = HashMap::new();
        for connection in connections {
            by_comet.entry(&connection.comet).or_default().push(connection.id.clone());
        }
        let PushedMessage { id, operation, body, sent_ms } = message;
        let content = Content { operation, body, sent_ms, trace: None, replayed: true };
        let payload = self.fleet.payload(&content).await;
        let mut sent = Vec::with_capacity(by_comet.len());
        for (comet, connections) in by_comet {
            let (reply, outcome) = oneshot::channel();
            let outcomes = Arc::new(PushReply(Mutex::new(Some(reply))));
            let run = Run::one(CallMessage { payload: payload.clone(), id: id.clone() });
            for run in run.into_calls(1, outcomes) {
                let request = CallRequest {
                    comet: comet.clone(),
                    named_by: NamedBy::Directory,
                    target: CallTarget::Connections(connections.clone()),
                    room: None,
                    run,
                };
                self.fleet.send(request).await;
            }
            sent.push(SentCall { connections, outcome });
        }
        sent
    }
}

/// Whether the connection belongs to the user, as far as the directory says.
fn is_of(connection: &Connection, user: &UserId) -> bool {
    connection.user.as_ref().is_none_or(|owner| owner == user)
}

fn stopped() -> PushOutcome {
    PushOutcome::Failed("the gateway is stopping".to_owned())
}

/// The outcomes of the connections of one call.
fn note(
    outcomes: &mut HashMap<ConnectionId, PushOutcome>,
    connections: Vec<ConnectionId>,
    outcome: CallOutcome,
) {
    let (outcome, partial) = match outcome {
        CallOutcome::Acknowledged => (PushOutcome::Delivered, None),
        CallOutcome::NobodyThere => (PushOutcome::NotConnected, None),
        CallOutcome::Unreachable(why) | CallOutcome::Refused(why) => (PushOutcome::Failed(why), None),
        CallOutcome::Partial(partial) => (PushOutcome::Delivered, Some(partial)),
    };
    outcomes.extend(connections.into_iter().map(|id| (id, outcome.clone())));
    if let Some(partial) = partial {
        let PartialDelivery { unreachable, refused, missing, why } = *partial;
        let failed = unreachable.into_iter().chain(refused);
        outcomes.extend(failed.map(|id| (id, PushOutcome::Failed(why.clone()))));
        outcomes.extend(missing.into_iter().map(|id| (id, PushOutcome::NotConnected)));
    }
}
