//! A stream that lets only bounded replies through: see [`RespScanner`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reply_meter::ReplyMeter;
use super::resp_scanner::RespScanner;

/// Bytes per read from the socket.
const CHUNK: usize = 16 * 1024;

/// A stream that lets only bounded replies through.
pub(super) struct BoundedStream<S> {
    stream: S,
    meter: Arc<ReplyMeter>,
    scanner: RespScanner,
    chunk: Box<[u8]>,
    /// Accepted bytes; those from `taken` on have not been read yet.
    through: Vec<u8>,
    taken: usize,
}

impl<S> BoundedStream<S> {
    pub(super) fn new(stream: S, meter: Arc<ReplyMeter>) -> Self {
        Self {
            stream,
            meter,
            scanner: RespScanner::default(),
            chunk: vec![0; CHUNK].into(),
            through: Vec::with_capacity(CHUNK),
            taken: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.through.len() {
            this.taken = 0;
            this.through.clear();
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(excess) = this.scanner.feed(chunk.filled(), &mut this.through, &this.meter) {
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, format!("{excess:?}"));
                this.meter.exceeded(excess);
                return Poll::Ready(Err(error));
            }
        }
        let left = &this.through[this.taken..];
        let part = &left[..left.len().min(out.remaining())];
        out.put_slice(part);
        this.taken += part.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
