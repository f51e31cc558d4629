//! Opens one connection, over TCP, TLS or a Unix socket, with limits on what the server may send.
//!
//! The `redis` crate opens connections itself, without a hook for the stream. So the socket is opened
//! here in the same way, and passed on inside [`BoundedStream`].

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Pipeline, ProtocolVersion, RedisConnectionInfo,
    Value,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;

use super::bounded_stream::BoundedStream;
use super::error::{ServerFailure, ServerFailureKind};
use super::lease::LeaseTerm;
use super::reply_meter::{RejectedReply, ReplyLimits, ReplyMeter};
use super::subscriber::Subscriber;
use super::tracking::{ConnectionTracking, Tracker};

/// Timeouts and limits of one connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimits {
    pub(super) connect: Duration,
    pub(super) response: Duration,
    pub(super) reply_limits: ReplyLimits,
    /// What the server should report changes of, if anything.
    pub(super) tracker: Option<Arc<Tracker>>,
    /// What to subscribe to, if anything.
    pub(super) subscriber: Option<Arc<Subscriber>>,
}

/// A connection. Clones share it; it is closed when the last one is dropped.
#[derive(Clone)]
pub(super) struct BoundedConnection {
    redis: MultiplexedConnection,
    meter: Arc<ReplyMeter>,
    tracking: Option<Arc<ConnectionTracking>>,
    _driver: Arc<JoinSet<()>>,
}

/// Replies, and the term under which the keys of tracked commands were read.
pub(super) type TrackedReplies = (Vec<Value>, Option<LeaseTerm>);

impl BoundedConnection {
    /// Connects and logs in.
    pub(super) async fn open(
        server: &ConnectionInfo,
        timeouts: &ConnectionLimits,
    ) -> Result<Self, ServerFailure> {
        let opened = tokio::time::timeout(timeouts.connect, Self::open_in_time(server, timeouts)).await;
        opened.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn open_in_time(
        server: &ConnectionInfo,
        timeouts: &ConnectionLimits,
    ) -> Result<Self, ServerFailure> {
        let stream = dial(server).await?;
        if let Some(subscriber) = &timeouts.subscriber {
            let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            let mut connection = Self::log_in(stream, &settings, timeouts, None).await?;
            connection.subscribe(subscriber).await?;
            return Ok(connection);
        }
        let Some(tracker) = &timeouts.tracker else {
            return Self::log_in(stream, server.redis_settings(), timeouts, None).await;
        };
        let tracking = ConnectionTracking::new(tracker, true);
        let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        match Self::log_in(stream, &settings, timeouts, Some(Arc::clone(&tracking))).await {
            Ok(mut connection) => {
                connection.start_tracking().await?;
                Ok(connection)
            }
            // It may not know RESP3, which some proxies answer by closing the connection. If anything
            // else is wrong, it is wrong without RESP3, too.
            Err(refused) => {
                let tracking = ConnectionTracking::new(tracker, false);
                let (stream, settings) = (dial(server).await?, server.redis_settings());
                let connection =
                    Self::log_in(stream, settings, timeouts, Some(Arc::clone(&tracking))).await?;
                tracking.refused(&refused.message);
                Ok(connection)
            }
        }
    }

    async fn log_in(
        stream: Box<dyn RedisStream>,
        settings: &RedisConnectionInfo,
        timeouts: &ConnectionLimits,
        tracking: Option<Arc<ConnectionTracking>>,
    ) -> Result<Self, ServerFailure> {
        let meter = ReplyMeter::new(timeouts.reply_limits.clone());
        let stream = BoundedStream::new(stream, Arc::clone(&meter));
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(timeouts.response));
        if let Some(tracking) = tracking.as_ref().filter(|tracking| tracking.is_resp3()) {
            config = config.set_push_sender(tracking.on_push());
        }
        if let Some(subscriber) = &timeouts.subscriber {
            config = config.set_push_sender(subscriber.on_push());
        }
        let made = MultiplexedConnection::new_with_config(settings, stream, config).await;
        let (redis, driver) = made.map_err(|error| match meter.excess() {
            Some(excess) => excess.into(),
            None => ServerFailure::from(error),
        })?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Self { redis, meter, tracking, _driver: Arc::new(task) })
    }

    /// How changes are reported over this connection, if that was asked for.
    pub(super) fn tracking(&self) -> Option<&Arc<ConnectionTracking>> {
        self.tracking.as_ref()
    }

    /// Subscribes.
    async fn subscribe(&mut self, subscriber: &Subscriber) -> Result<(), ServerFailure> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(subscriber.request());
        let (replies, _) = self.send(&pipeline).await?;
        match replies.first().and_then(Subscriber::refused) {
            Some(refused) => Err(ServerFailure::new(ServerFailureKind::Denied, refused)),
            None => Ok(()),
        }
    }

    /// Asks the server to report changes.
    pub(super) async fn start_tracking(&mut self) -> Result<(), ServerFailure> {
        let Some(tracking) = self.tracking.clone() else { return Ok(()) };
        let (replies, _) = self.send(&ConnectionTracking::request()).await?;
        tracking.answered(&replies);
        Ok(())
    }

    /// Sends one pipeline; one reply per command, whatever it contains.
    pub(super) async fn send(&mut self, pipeline: &Pipeline) -> Result<TrackedReplies, ServerFailure> {
        let tracking = self.tracking.clone();
        let term = tracking.as_ref().and_then(|tracking| tracking.term());
        let wire = tracking.as_ref().map(|tracking| tracking.wire(pipeline));
        let sent = wire.as_ref().map_or(pipeline, |wire| &wire.pipeline);
        let (guard, now) = (self.meter.enter(), Instant::now());
        match self.redis.send_packed_commands(sent, 0, sent.len()).await {
            Ok(replies) => {
                guard.complete();
                if let Some(lease) = tracking.as_ref().and_then(|tracking| tracking.lease()) {
                    lease.confirm(now);
                }
                let (Some(wire), Some(tracking)) = (wire, tracking) else { return Ok((replies, term)) };
                match wire.replies(replies) {
                    (replies, None) => Ok((replies, term)),
                    (replies, Some(refused)) => {
                        tracking.revoked(refused);
                        Ok((replies, None))
                    }
                }
            }
            Err(error) => Err(guard.excess().map_or_else(|| error.into(), ServerFailure::from)),
        }
    }
}

impl From<RejectedReply> for ServerFailure {
    fn from(excess: RejectedReply) -> Self {
        match excess {
            RejectedReply::TooLarge(message) => Self::new(ServerFailureKind::TooLarge, message),
            RejectedReply::Malformed(message) => Self::new(ServerFailureKind::Malformed, message),
        }
    }
}

impl From<io::Error> for ServerFailure {
    fn from(error: io::Error) -> Self {
        redis::RedisError::from(error).into()
    }
}

trait RedisStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> RedisStream for S {}

async fn dial(server: &ConnectionInfo) -> Result<Box<dyn RedisStream>, ServerFailure> {
    match server.addr() {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(dial_tcp(host, *port, server).await?)),
        ConnectionAddr::TcpTls { host, port, insecure, .. } => {
            let stream = dial_tcp(host, *port, server).await?;
            let connector = tls(*insecure).map_err(redis::RedisError::from)?;
            let secured = connector.connect(host, stream).await.map_err(redis::RedisError::from)?;
            Ok(Box::new(secured))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        other => {
            Err(ServerFailure::new(ServerFailureKind::Malformed, format!("unsupported address {other}")))
        }
    }
}

/// The first address of the host that accepts a connection.
async fn dial_tcp(host: &str, port: u16, server: &ConnectionInfo) -> io::Result<TcpStream> {
    let attempts: Vec<_> =
        lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if attempts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")));
    }
    let (stream, _) = select_ok(attempts).await?;
    stream.set_nodelay(server.tcp_settings().nodelay())?;
    Ok(stream)
}

/// As in the `redis` crate: `#insecure` in the URL accepts any certificate.
fn tls(insecure: bool) -> native_tls::Result<tokio_native_tls::TlsConnector> {
    let mut builder = native_tls::TlsConnector::builder();
    if insecure {
        builder.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true).use_sni(false);
    }
    Ok(builder.build()?.into())
}
