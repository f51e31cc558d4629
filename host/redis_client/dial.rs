//! Opens one connection, over TCP, TLS or a Unix socket, with limits on what the server may send.
//!
//! The `redis` crate opens connections itself, without a hook for the stream. So the socket is opened
//! here in the same way, and passed on inside [`Bounded`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Pipeline, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;

use super::bounds::{Bounded, Bounds, Excess, Meter};
use super::unavailable::{Problem, Trouble};

/// How long connecting and one pipeline may take, and how much may come.
#[derive(Debug, Clone)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) response: Duration,
    pub(super) bounds: Bounds,
}

/// A connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(super) struct Connection {
    redis: MultiplexedConnection,
    meter: Arc<Meter>,
    _driver: Arc<JoinSet<()>>,
}

impl Connection {
    /// Connects and logs in.
    pub(super) async fn open(server: &ConnectionInfo, timeouts: &Timeouts) -> Result<Self, Problem> {
        let opened = tokio::time::timeout(timeouts.connect, Self::open_in_time(server, timeouts)).await;
        opened.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn open_in_time(server: &ConnectionInfo, timeouts: &Timeouts) -> Result<Self, Problem> {
        let meter = Meter::new(timeouts.bounds.clone());
        let stream = Bounded::new(dial(server).await?, Arc::clone(&meter));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(timeouts.response));
        let made = MultiplexedConnection::new_with_config(server.redis_settings(), stream, config).await;
        let (redis, driver) = made.map_err(|error| match meter.excess() {
            Some(excess) => excess.into(),
            None => Problem::from(error),
        })?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Self { redis, meter, _driver: Arc::new(task) })
    }

    /// Sends one pipeline; one reply per command, whatever it contains.
    pub(super) async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, Problem> {
        let ticket = self.meter.enter();
        match self.redis.send_packed_commands(pipeline, 0, pipeline.len()).await {
            Ok(replies) => {
                ticket.answered();
                Ok(replies)
            }
            Err(error) => Err(ticket.excess().map_or_else(|| error.into(), Problem::from)),
        }
    }
}

impl From<Excess> for Problem {
    fn from(excess: Excess) -> Self {
        match excess {
            Excess::Large(said) => Self::new(Trouble::TooLarge, said),
            Excess::Nonsense(said) => Self::new(Trouble::Nonsense, said),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        redis::RedisError::from(error).into()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn dial(server: &ConnectionInfo) -> Result<Box<dyn Stream>, Problem> {
    match server.addr() {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(dial_tcp(host, *port, server).await?)),
        ConnectionAddr::TcpTls { host, port, insecure, .. } => {
            let stream = dial_tcp(host, *port, server).await?;
            let connector = tls(*insecure).map_err(redis::RedisError::from)?;
            let secured = connector.connect(host, stream).await.map_err(redis::RedisError::from)?;
            Ok(Box::new(secured))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        other => Err(Problem::new(Trouble::Nonsense, format!("unsupported address {other}"))),
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
