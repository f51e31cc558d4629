//! What a guest writes to its standard output and error: where language runtimes report uncaught
//! exceptions, and where authors print first.
//!
//! The latest part is buffered from one call to the next, within a limit. The instance writes it to
//! the plugin's log, and quotes it in failures.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};

/// How much output of a call is kept, in bytes.
const MOST: usize = 16 * 1024;
/// How much a guest may write at once, in bytes.
const AT_ONCE: usize = 64 * 1024;

/// One stream of one instance. Clones are the same stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestOutput(Arc<Mutex<OutputBuffer>>);

#[derive(Debug, Default)]
struct OutputBuffer {
    bytes: Vec<u8>,
    /// Whether older bytes were dropped.
    is_cut: bool,
}

impl GuestOutput {
    /// The output since the last call of this function, and whether its beginning is missing; `None`
    /// if there is none.
    pub(crate) fn take(&self) -> Option<(String, bool)> {
        let mut written = self.0.lock();
        if written.bytes.is_empty() {
            return None;
        }
        let OutputBuffer { bytes, is_cut } = std::mem::take(&mut *written);
        Some((String::from_utf8_lossy(&bytes).into_owned(), is_cut))
    }

    fn append(&self, bytes: &[u8]) {
        let mut written = self.0.lock();
        let latest = &bytes[bytes.len().saturating_sub(MOST)..];
        let too_many = (written.bytes.len() + latest.len()).saturating_sub(MOST);
        written.is_cut |= too_many > 0 || latest.len() < bytes.len();
        written.bytes.drain(..too_many);
        written.bytes.extend_from_slice(latest);
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.append(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(AT_ONCE)
    }
}

#[async_trait::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.append(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_part_is_kept() {
        let output = GuestOutput::default();
        assert_eq!(output.take(), None);
        output.append(b"one ");
        output.append("两".as_bytes());
        assert_eq!(output.take(), Some(("one 两".to_owned(), false)));
        assert_eq!(output.take(), None, "each is taken once");
        output.append(b"first");
        output.append(&[b'x'; MOST]);
        output.append(b"last");
        let (text, is_cut) = output.take().unwrap();
        assert!(is_cut && text.len() == MOST && text.ends_with("xlast") && !text.contains("first"));
        output.append(&[b'y'; 3 * MOST]);
        assert_eq!(output.take().unwrap().0.len(), MOST);
        output.append(b"new");
        assert_eq!(output.take(), Some(("new".to_owned(), false)));
    }
}
