//! Opens one connection, over TCP, TLS or a Unix socket, with limits on what the server may send.
//!
//! The `redis` crate opens connections itself, without a hook for the stream. So the socket is opened
//! here in the same way, and passed on inside [`BoundedStream`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Pipeline, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;

use super::bounded_stream::BoundedStream;
use super::error::{ServerFailure, ServerFailureKind};
use super::reply_meter::{RejectedReply, ReplyLimits, ReplyMeter};

/// Timeouts and limits of one connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimits {
    pub(super) connect: Duration,
    pub(super) response: Duration,
    pub(super) reply_limits: ReplyLimits,
}

/// A connection. Clones share it; it is closed when the last one is dropped.
#[derive(Clone)]
pub(super) struct BoundedConnection {
    redis: MultiplexedConnection,
    meter: Arc<ReplyMeter>,
    _driver: Arc<JoinSet<()>>,
}

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
        let meter = ReplyMeter::new(timeouts.reply_limits.clone());
        let stream = BoundedStream::new(dial(server).await?, Arc::clone(&meter));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(timeouts.response));
        let made = MultiplexedConnection::new_with_config(server.redis_settings(), stream, config).await;
        let (redis, driver) = made.map_err(|error| match meter.excess() {
            Some(excess) => excess.into(),
            None => ServerFailure::from(error),
        })?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Self { redis, meter, _driver: Arc::new(task) })
    }

    /// Sends one pipeline; one reply per command, whatever it contains.
    pub(super) async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, ServerFailure> {
        let guard = self.meter.enter();
        match self.redis.send_packed_commands(pipeline, 0, pipeline.len()).await {
            Ok(replies) => {
                guard.complete();
                Ok(replies)
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
