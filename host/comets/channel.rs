//! How calls are made: one tonic channel to one comet, and a codec that sends bytes as they
//! are and does not look into replies.
//!
//! The channel connects on the first call and again by itself when the connection is gone;
//! the name is then looked up anew, so that a comet whose address changed behind its DNS name
//! is found (hyper-util's `HttpConnector` resolves on every connect). It uses no proxy,
//! whatever the environment says.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

use super::wire::Request;
use crate::message::{CometAddr, MESSAGE_ID, MessageId};

/// A ping every so often, even when no call is under way: else a peer that vanished is only
/// noticed by calls that time out.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Windows are for what comets send, which are empty replies.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Replies are empty messages. This is what a comet may send without being refused.
const MAX_REPLY: usize = 64 * 1024;
/// The prefix that gRPC puts in front of every message.
const GRPC_PREFIX: usize = 5;

/// Makes channels to one comet.
#[derive(Clone, Debug)]
pub(super) struct Dialer(Endpoint);

impl Dialer {
    /// # Errors
    /// When the address is none.
    pub(super) fn new(
        address: &CometAddr,
        connect_timeout: Duration,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .user_agent(concat!("halley/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Self(endpoint))
    }

    /// A new channel, which connects on its first call.
    pub(super) fn dial(&self) -> Client {
        Client(Grpc::new(self.0.connect_lazy()).max_decoding_message_size(MAX_REPLY))
    }
}

/// A channel to a comet. Clones share the connection.
#[derive(Clone)]
pub(super) struct Client(Grpc<Channel>);

impl Client {
    /// Makes one call. It has no deadline of its own.
    pub(super) async fn call(&mut self, call: tonic::Request<Bytes>, path: Path) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let codec = Raw { length: call.get_ref().len() };
        self.0.unary(call, path, codec).await.map(tonic::Response::into_inner)
    }
}

/// A method's path, as tonic takes it.
pub(super) type Path = http::uri::PathAndQuery;

/// A request with the ids of its messages as metadata.
pub(super) fn with_ids<'a>(
    request: Request,
    messages: impl Iterator<Item = (&'a super::wire::Payload, &'a MessageId)>,
) -> (tonic::Request<Bytes>, Path) {
    let mut call = tonic::Request::new(request.body);
    for (payload, id) in messages {
        if let Some(value) = payload.metadata(id) {
            call.metadata_mut().append(MESSAGE_ID, value);
        }
    }
    (call, request.path)
}

/// Sends bytes as they are; takes any reply for an empty one.
struct Raw {
    /// The length of the request.
    length: usize,
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Ignore;

    fn encoder(&mut self) -> Self {
        Self { length: self.length }
    }

    fn decoder(&mut self) -> Ignore {
        Ignore
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    /// One allocation of the right size.
    fn buffer_settings(&self) -> BufferSettings {
        let size = self.length + GRPC_PREFIX;
        BufferSettings::new(size, size)
    }
}

struct Ignore;

impl Decoder for Ignore {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(64, 64)
    }
}
