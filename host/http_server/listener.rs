//! Sources of connections, such as TCP.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use crate::http_server::peer::{ClientName, Peer};

/// A source of connections.
pub(crate) trait Listen: Send + Sync + 'static {
    /// A connection that was accepted.
    type Accepted: Establish;

    /// Accepts the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Accepted, Peer)>> + Send;
}

/// A connection that was accepted, before its handshake if it has one.
pub(crate) trait Establish: Send + 'static {
    /// The connection, ready for HTTP.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Makes it ready, and names the client by its certificate if it had to show one.
    fn establish(self) -> impl Future<Output = io::Result<(Self::Stream, ClientName)>> + Send;
}

impl Establish for TcpStream {
    type Stream = Self;

    async fn establish(self) -> io::Result<(Self, ClientName)> {
        Ok((self, ClientName::NONE))
    }
}

impl Listen for TcpListener {
    type Accepted = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        Ok((stream, Peer::Tcp(address)))
    }
}

/// Kernel send buffer of each connection, in bytes.
const SEND_BUFFER: u32 = 256 * 1024;
/// Connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 1024;

/// Binds a TCP listener for this key of the configuration.
///
/// # Errors
/// If the address is invalid or in use.
pub(crate) async fn bind(key: &str, listen: &str) -> anyhow::Result<TcpListener> {
    let failed = || format!("cannot listen on `{listen}`; check `{key}`, or which process uses the port");
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in lookup_host(listen).await.with_context(failed)? {
        match bind_to(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last).with_context(failed)
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
