//! The streams of a fake comet: messages are recorded like calls, and acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use halley::comets::proto::delivery::delivery_server::{Delivery, DeliveryServer};
use halley::comets::proto::delivery::{
    Acks, Credit, FromComet, GoAway, Message, Pong, Refused, ToComet, Welcome, from_comet, message, to_comet,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status, Streaming};

use super::comet::{Behaviour, Call, CallLog, Packet, To};

/// What may be out.
const CREDIT: Credit = Credit { messages: 10_000, bytes: 64 * 1024 * 1024 };

/// A mistake of a comet in its next acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFault {
    /// Acknowledges a message that was not sent.
    AcknowledgesBeyond,
    /// Acknowledges less than before.
    AcknowledgesBackwards,
    /// Never acknowledges anything again on this stream.
    NeverAcknowledges,
    /// Takes credit back.
    ShrinksCredit,
    /// Says Welcome again.
    WelcomesTwice,
    /// Goes away, acknowledges what it has got, and ends the stream.
    GoesAway,
    /// Ends the stream without a word.
    EndsStream,
}

impl StreamFault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AcknowledgesBeyond,
        Self::AcknowledgesBackwards,
        Self::NeverAcknowledges,
        Self::ShrinksCredit,
        Self::WelcomesTwice,
        Self::GoesAway,
        Self::EndsStream,
    ];
}

/// A server of streams that records messages in this log.
pub(super) fn service(call_log: Arc<CallLog>) -> DeliveryServer<Streams> {
    DeliveryServer::new(Streams { call_log, tasks: Mutex::default() })
}

pub(super) struct Streams {
    call_log: Arc<CallLog>,
    tasks: Mutex<JoinSet<Option<()>>>,
}

#[tonic::async_trait]
impl Delivery for Streams {
    type DeliverStream = BoxStream<'static, Result<FromComet, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<ToComet>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let stream = Stream {
            call_log: Arc::clone(&self.call_log),
            sender,
            unacknowledged: VecDeque::new(),
            settled: 0,
            bytes: 0,
            is_mute: false,
        };
        drop(self.tasks.lock().spawn(stream.serve(request.into_inner())));
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        Ok(Response::new(frames.boxed()))
    }
}

/// A message that is to be acknowledged at this time, or refused.
struct Unacknowledged {
    seq: u64,
    bytes: u64,
    due: Instant,
    refused: Option<String>,
}

struct Stream {
    call_log: Arc<CallLog>,
    sender: mpsc::Sender<Result<FromComet, Status>>,
    unacknowledged: VecDeque<Unacknowledged>,
    /// The messages and bytes that are settled.
    settled: u64,
    bytes: u64,
    /// Whether nothing is acknowledged any more.
    is_mute: bool,
}

impl Stream {
    /// Until the gateway or a fault ends it.
    async fn serve(mut self, mut incoming: Streaming<ToComet>) -> Option<()> {
        let to_comet::Frame::Hello(_) = incoming.message().await.ok()??.frame? else { return None };
        let welcome = Welcome { version: 1, credit: Some(CREDIT), heartbeat_ms: 1000, ..Welcome::default() };
        self.send(from_comet::Frame::Welcome(welcome)).await?;
        loop {
            let due = self.unacknowledged.front().filter(|_| !self.is_mute).map(|front| front.due);
            tokio::select! {
                frame = incoming.message() => match frame.ok()??.frame? {
                    to_comet::Frame::Messages(messages) => {
                        for message in messages.messages {
                            self.take(message).await?;
                        }
                    }
                    to_comet::Frame::Ping(ping) => {
                        self.send(from_comet::Frame::Pong(Pong { nonce: ping.nonce })).await?;
                    }
                    to_comet::Frame::Finish(_) | to_comet::Frame::Hello(_) => {}
                },
                () = sleep_until(due), if due.is_some() => {}
            }
            self.acknowledge().await?;
        }
    }

    async fn take(&mut self, message: Message) -> Option<()> {
        let (seq, bytes, now) = (message.seq, message.body.len() as u64, Instant::now());
        let accepted = |due| Unacknowledged { seq, bytes, due, refused: None };
        let next = match self.call_log.enter(call(message)) {
            Behaviour::Ok => accepted(now),
            Behaviour::Delay(time) => accepted(now + time),
            Behaviour::Hang => {
                self.is_mute = true;
                accepted(now)
            }
            Behaviour::Fail(code) | Behaviour::FailLater(_, code) if is_permanent(code) => {
                let refused = Some(format!("the fake comet is configured to refuse: {code:?}"));
                Unacknowledged { seq, bytes, due: now, refused }
            }
            // A stream has no "later" for one message: its handler gives up.
            Behaviour::Fail(code) | Behaviour::FailLater(_, code) => {
                self.unacknowledged.iter_mut().for_each(|before| before.due = now);
                self.acknowledge().await?;
                let status = Status::new(code, "the fake comet is configured to fail");
                drop(self.sender.send(Err(status)).await);
                return None;
            }
        };
        self.unacknowledged.push_back(next);
        Some(())
    }

    /// Acknowledges what is due, in one frame.
    async fn acknowledge(&mut self) -> Option<()> {
        if self.is_mute {
            return Some(());
        }
        let (now, mut acks) = (Instant::now(), Acks::default());
        while let Some(next) = self.unacknowledged.pop_front_if(|next| next.due <= now) {
            (self.settled, self.bytes, acks.up_to) = (self.settled + 1, self.bytes + next.bytes, next.seq);
            acks.refused.extend(next.refused.map(|reason| Refused { seq: next.seq, reason }));
        }
        if acks.up_to == 0 {
            return Some(());
        }
        let fault = self.call_log.take_stream_fault();
        let up_to = acks.up_to;
        match fault {
            Some(StreamFault::NeverAcknowledges) => {
                self.is_mute = true;
                return Some(());
            }
            Some(StreamFault::EndsStream) => return None,
            _ => {}
        }
        self.send(from_comet::Frame::Acks(acks)).await?;
        let credit = Credit { messages: self.settled + CREDIT.messages, bytes: self.bytes + CREDIT.bytes };
        let wrong = |up_to| from_comet::Frame::Acks(Acks { up_to, ..Acks::default() });
        self.send(match fault {
            Some(StreamFault::AcknowledgesBeyond) => wrong(up_to + 1_000_000),
            Some(StreamFault::AcknowledgesBackwards) => wrong(up_to - 1),
            Some(StreamFault::ShrinksCredit) => from_comet::Frame::Credit(Credit { messages: 1, bytes: 1 }),
            Some(StreamFault::WelcomesTwice) => from_comet::Frame::Welcome(Welcome::default()),
            Some(StreamFault::GoesAway) => {
                from_comet::Frame::GoAway(GoAway { reason: "a deployment".into() })
            }
            _ => from_comet::Frame::Credit(credit),
        })
        .await
    }

    /// `None` once the stream has ended.
    async fn send(&self, frame: from_comet::Frame) -> Option<()> {
        self.sender.send(Ok(FromComet { frame: Some(frame) })).await.ok()
    }
}

/// A message as the call that it would have been.
fn call(message: Message) -> Call {
    let proto = Packet { ver: 1, op: message.operation, seq: 0, body: message.body };
    let to = match message.audience {
        Some(message::Audience::Room(room)) => To::Room(room),
        Some(message::Audience::Connections(connections)) => To::Keys(connections.ids),
        Some(message::Audience::Everyone(everyone)) => To::Everyone { speed: everyone.speed },
        None => panic!("a message without an audience"),
    };
    let (messages, at) = (vec![message.id], Instant::now());
    Call {
        to,
        proto_op: message.operation,
        proto: Some(proto),
        messages,
        at,
        replayed: message.replayed,
        trace: (message.traceparent, String::new()),
        refused: false,
    }
}

/// The statuses that a retry does not change.
fn is_permanent(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated
    )
}

async fn sleep_until(due: Option<Instant>) {
    tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)).into()).await;
}
