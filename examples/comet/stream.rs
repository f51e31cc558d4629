//! Streamed delivery (`proto/delivery.proto`), which a comet may serve next to the calls of its dialect.
//!
//! One loop per stream: take a frame, hand its messages over, acknowledge all of them with one frame. The
//! hub never waits, so a message counts as delivered when it is in the browsers' queues. A comet that
//! hands messages to something slower acknowledges them when that has taken them, and gives as much
//! credit as it can hold.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use halley::comets::proto::delivery::delivery_server::{Delivery, DeliveryServer};
use halley::comets::proto::delivery::{
    Acks, Credit, FromComet, GoAway, Message, Messages, Missing, Pong, Refused, ToComet, Welcome, from_comet,
    message, to_comet,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use crate::{ExampleComet, To};

/// What may be out: more than the gateway sends in the time that an acknowledgement takes.
const MESSAGES: u64 = 10_000;
const BYTES: u64 = 16 * 1024 * 1024;
/// The gateway asks for a sign of life after this long without traffic.
const HEARTBEAT_MS: u32 = 10_000;

/// The service.
pub(crate) fn service(comet: Arc<ExampleComet>) -> DeliveryServer<Streams> {
    DeliveryServer::new(Streams(comet))
}

pub(crate) struct Streams(Arc<ExampleComet>);

#[tonic::async_trait]
impl Delivery for Streams {
    type DeliverStream = BoxStream<'static, Result<FromComet, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<ToComet>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        // Nothing waits here: a frame of the gateway causes at most two.
        let (outgoing, receiver) = mpsc::channel(64);
        let stream = Stream { comet: Arc::clone(&self.0), outgoing, messages: 0, bytes: 0 };
        self.0.streams.spawn(stream.serve(request.into_inner()));
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|frame| (Ok(frame), receiver))
        });
        Ok(Response::new(frames.boxed()))
    }
}

/// One stream.
struct Stream {
    comet: Arc<ExampleComet>,
    outgoing: mpsc::Sender<FromComet>,
    /// Totals since it began.
    messages: u64,
    bytes: u64,
}

impl Stream {
    /// Until the gateway ends it: then everything that it has sent is acknowledged.
    async fn serve(mut self, mut incoming: Streaming<ToComet>) -> Option<()> {
        let to_comet::Frame::Hello(hello) = incoming.message().await.ok()??.frame? else { return None };
        info!("{} streams messages", hello.gateway);
        let welcome = Welcome {
            version: 1,
            comet: self.comet.address.clone(),
            credit: Some(self.credit()),
            heartbeat_ms: HEARTBEAT_MS,
            features: Vec::new(),
        };
        self.send(from_comet::Frame::Welcome(welcome)).await?;
        let draining = self.comet.draining.clone();
        let mut goes_away = false;
        loop {
            let frame = tokio::select! {
                frame = incoming.message() => frame.ok()??.frame,
                () = draining.cancelled(), if !goes_away => {
                    goes_away = true;
                    // The gateway sends nothing new, and ends the stream.
                    self.send(from_comet::Frame::GoAway(GoAway { reason: "it stops".to_owned() })).await?;
                    continue;
                }
            };
            match frame {
                Some(to_comet::Frame::Messages(messages)) => self.take(messages).await?,
                Some(to_comet::Frame::Ping(ping)) => {
                    self.send(from_comet::Frame::Pong(Pong { nonce: ping.nonce })).await?;
                }
                // What came before is acknowledged already; frames of later versions are ignored.
                Some(to_comet::Frame::Finish(_) | to_comet::Frame::Hello(_)) | None => {}
            }
        }
    }

    /// Hands over the messages of a frame, and acknowledges them.
    async fn take(&mut self, messages: Messages) -> Option<()> {
        let mut acks = Acks::default();
        for message in messages.messages {
            let (seq, bytes) = (message.seq, message.body.len() as u64);
            (acks.up_to, self.messages, self.bytes) = (seq, self.messages + 1, self.bytes + bytes);
            match self.hand_over(message) {
                Ok(None) => {}
                // These connections are closed: their users go to the offline policy.
                Ok(Some(ids)) => acks.missing.push(Missing { seq, ids }),
                // The gateway writes it to the dead-letter topic.
                Err(reason) => acks.refused.push(Refused { seq, reason: reason.to_owned() }),
            }
        }
        self.send(from_comet::Frame::Acks(acks)).await?;
        self.send(from_comet::Frame::Credit(self.credit())).await
    }

    /// Returns the connections that are not here; an empty list means that nobody of the room is.
    fn hand_over(&self, message: Message) -> Result<Option<Vec<String>>, &'static str> {
        let Message { id, audience, operation, body, .. } = message;
        let to = match &audience {
            Some(message::Audience::Room(room)) => To::Room(room),
            Some(message::Audience::Connections(connections)) => To::Connections(&connections.ids),
            Some(message::Audience::Everyone(_)) => To::Everyone,
            None => return Err("a message without an audience"),
        };
        let id = (!id.is_empty()).then(|| Arc::from(id));
        Ok(self.comet.show(&to, operation, &body, id))
    }

    fn credit(&self) -> Credit {
        Credit { messages: self.messages + MESSAGES, bytes: self.bytes + BYTES }
    }

    /// `None` once the stream has ended.
    async fn send(&self, frame: from_comet::Frame) -> Option<()> {
        self.outgoing.send(FromComet { frame: Some(frame) }).await.ok()
    }
}
