//! Streamed delivery (`proto/delivery.proto`) at the benchmark's comets: every frame is noted and acknowledged
//! at once.

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use tonic::{Request, Response, Status, Streaming};

use super::comets::Receiver;
use crate::comets::proto::delivery::delivery_server::Delivery;
use crate::comets::proto::delivery::from_comet::Frame;
use crate::comets::proto::delivery::{
    Acks, Credit, FromComet, Messages, Pong, ToComet, Welcome, to_comet::Frame as GatewayFrame,
};

/// What may be out: more than a gateway sends in the time that an acknowledgement takes.
const MESSAGES: u64 = 10_000;
const BYTES: u64 = 64 * 1024 * 1024;
/// The gateway asks for a sign of life after this long without traffic.
const HEARTBEAT_MS: u32 = 10_000;

#[tonic::async_trait]
impl Delivery for Receiver {
    type DeliverStream = BoxStream<'static, Result<FromComet, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<ToComet>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let stream = BenchStream {
            receiver: self.clone(),
            incoming: request.into_inner(),
            outgoing: VecDeque::new(),
            messages: 0,
            bytes: 0,
        };
        let frames = unfold(stream, |mut stream| async move {
            let frame = stream.next_frame().await?;
            Some((Ok(FromComet { frame: Some(frame) }), stream))
        });
        Ok(Response::new(frames.boxed()))
    }
}

/// One stream of a gateway.
struct BenchStream {
    receiver: Receiver,
    incoming: Streaming<ToComet>,
    /// Up to two frames for the last one of the gateway.
    outgoing: VecDeque<Frame>,
    /// Totals since it began.
    messages: u64,
    bytes: u64,
}

impl BenchStream {
    /// The next frame for the gateway; `None` once the gateway has ended the stream.
    async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.outgoing.pop_front() {
                return Some(frame);
            }
            match self.incoming.message().await.ok()??.frame {
                Some(GatewayFrame::Hello(_)) => self.outgoing.push_back(Frame::Welcome(self.welcome())),
                Some(GatewayFrame::Messages(messages)) => self.take(messages),
                Some(GatewayFrame::Ping(ping)) => {
                    self.outgoing.push_back(Frame::Pong(Pong { nonce: ping.nonce }));
                }
                // What came before is acknowledged already.
                Some(GatewayFrame::Finish(_)) | None => {}
            }
        }
    }

    fn take(&mut self, messages: Messages) {
        let Some(up_to) = messages.messages.last().map(|message| message.seq) else { return };
        self.messages += messages.messages.len() as u64;
        self.bytes += messages.messages.iter().map(|message| message.body.len() as u64).sum::<u64>();
        self.receiver.streamed(messages);
        self.outgoing.push_back(Frame::Acks(Acks { up_to, ..Acks::default() }));
        self.outgoing.push_back(Frame::Credit(self.credit()));
    }

    fn credit(&self) -> Credit {
        Credit { messages: self.messages + MESSAGES, bytes: self.bytes + BYTES }
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: 1,
            comet: "halley bench".to_owned(),
            credit: Some(self.credit()),
            heartbeat_ms: HEARTBEAT_MS,
            features: Vec::new(),
        }
    }
}
