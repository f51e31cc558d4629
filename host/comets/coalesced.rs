//! Collects what a connection writes, so that the frames of many calls leave in one system call.
//!
//! `h2` flushes after each larger frame. Here a flush does nothing: the task that drives the connection
//! calls [`WriteOut::poll`] once the connection has written all that it has.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is collected before the connection has to wait for the socket.
const LIMIT: usize = 256 * 1024;

/// How many buffers are kept for the next connections that write, and how large they may be.
const KEPT: usize = 8;
const KEPT_SIZE: usize = 2 * LIMIT;

/// Buffers that no connection uses. A connection has one only while something waits in it, so that idle
/// ones have none, and busy ones share few that are still in the processor's cache.
static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A stream whose writes are collected.
pub(super) struct Coalesced<S>(Arc<Mutex<Collected<S>>>);

/// Writes out what was collected. It shares the stream.
pub(super) struct WriteOut<S>(Arc<Mutex<Collected<S>>>);

struct Collected<S> {
    stream: S,
    /// What was written.
    buffer: Vec<u8>,
    /// How much of it has left.
    left: usize,
}

/// A stream whose writes are collected, and its other end.
pub(super) fn coalesced<S>(stream: S) -> (Coalesced<S>, WriteOut<S>) {
    let collected = Arc::new(Mutex::new(Collected { stream, buffer: Vec::new(), left: 0 }));
    (Coalesced(Arc::clone(&collected)), WriteOut(collected))
}

impl<S> Collected<S> {
    fn collect(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() == 0 {
            self.buffer = FREE.lock().pop().unwrap_or_default();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Everything has left.
    fn clear(&mut self) {
        self.left = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() > KEPT_SIZE {
            return;
        }
        buffer.clear();
        let mut free = FREE.lock();
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

impl<S: AsyncWrite + Unpin> Collected<S> {
    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.left < self.buffer.len() {
            let rest = &self.buffer[self.left..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left += written;
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.len() >= LIMIT {
            ready!(self.poll_write_out(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> WriteOut<S> {
    /// Writes out what was collected, as far as the socket takes it. The caller is woken when it takes
    /// more.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_write_out(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut collected = self.0.lock();
        ready!(collected.poll_room(context))?;
        collected.collect(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut collected = self.0.lock();
        ready!(collected.poll_room(context))?;
        slices.iter().for_each(|slice| collected.collect(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collected = self.0.lock();
        ready!(collected.poll_write_out(context))?;
        Pin::new(&mut collected.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_written_leaves_when_it_is_written_out() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut stream, out) = coalesced(near);
        for word in ["one", "two"] {
            stream.write_all(word.as_bytes()).await.expect("collected");
            stream.flush().await.expect("does nothing");
        }
        let mut read = [0; 6];
        assert!(far.read(&mut read).now_or_never().is_none(), "nothing has left");
        std::future::poll_fn(|context| out.poll(context)).await.expect("written");
        far.read_exact(&mut read).await.expect("both");
        assert_eq!(&read, b"onetwo");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_waited_for() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut stream, out) = coalesced(near);
        stream.write_all(&vec![7; LIMIT]).await.expect("collected");
        assert!(stream.write(b"x").now_or_never().is_none(), "there is a limit");
        let reads = async {
            let mut all = vec![0; LIMIT];
            far.read_exact(&mut all).await.expect("everything");
        };
        let writes = std::future::poll_fn(|context| out.poll(context));
        let ((), written) = tokio::join!(reads, writes);
        written.expect("written");
        assert_eq!(stream.write(b"x").await.expect("room"), 1);
        stream.shutdown().await.expect("ends");
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.expect("the rest");
        assert_eq!(rest, b"x", "a shutdown writes out what is left");
    }
}
