//! Sources of connections: TCP and the Unix socket.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream, lookup_host};

use crate::admin::peer::Peer;
use crate::admin::socket::BoundSocket;

/// A source of connections.
pub(super) trait Listen: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Accepts the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        Ok((stream, Peer::Tcp(address)))
    }
}

impl Listen for BoundSocket {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer::Unix(user)))
    }
}

/// Kernel send buffer of each connection, in bytes.
const SEND_BUFFER: u32 = 256 * 1024;
/// Connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 1024;

/// Binds a TCP listener for `[admin] KEY`.
///
/// # Errors
/// If the address is invalid or in use.
pub(super) async fn bind(key: &str, listen: &str) -> anyhow::Result<TcpListener> {
    let failed =
        || format!("cannot listen on `{listen}`; check `[admin] {key}`, or which process uses the port");
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
