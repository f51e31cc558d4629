//! Log output: a bounded queue to a thread that writes to standard error.
//!
//! The log must not affect records. A full disk or a closed pipe
//! fails each write; a stalled reader blocks writes for ever. So only this thread writes, and lines
//! that do not fit into the queue are dropped and counted.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use super::escape;

/// Maximum number of queued lines.
const QUEUE: usize = 8 * 1024;
/// Maximum size of the queued lines, in bytes.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Dropped lines of all sinks of the process: there is one standard error.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Queues lines for the writer thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogSink {
    queue: SyncSender<Vec<u8>>,
    backlog: Arc<SinkBacklog>,
}

/// Lines that are queued and not yet written.
#[derive(Debug, Default)]
struct SinkBacklog {
    bytes: AtomicUsize,
    lines: Mutex<usize>,
    none: Condvar,
}

impl SinkBacklog {
    /// A line was written or dropped.
    fn done(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut lines = self.lines.lock();
        *lines -= 1;
        if *lines == 0 {
            self.none.notify_all();
        }
    }
}

impl LogSink {
    /// Starts the thread. It ends with the process, or when every clone is dropped.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        gap: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, items) = sync_channel(QUEUE);
        let backlog = Arc::<SinkBacklog>::default();
        let writer = Writer { out, gap, backlog: Arc::clone(&backlog), reported: 0 };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&items))?;
        Ok(Self { queue, backlog })
    }

    /// Queues a line. Never waits and never fails.
    pub(super) fn put(&self, line: &[u8]) {
        let queued = self.backlog.bytes.fetch_add(line.len(), Ordering::Relaxed);
        *self.backlog.lines.lock() += 1;
        if queued >= QUEUE_BYTES || self.queue.try_send(line.to_vec()).is_err() {
            self.backlog.done(line.len());
            DROPPED.inc();
        }
    }

    /// Waits until everything is written, at most for this long.
    pub(super) fn flush(&self, at_most: Duration) {
        let mut lines = self.backlog.lines.lock();
        self.backlog.none.wait_while_for(&mut lines, |lines| *lines > 0, at_most);
    }
}

/// State of the writer thread.
struct Writer<W, G> {
    out: W,
    /// Formats the line that reports dropped lines.
    gap: G,
    backlog: Arc<SinkBacklog>,
    /// The number of dropped lines that have been reported.
    reported: u64,
}

impl<W: Write, G: Fn(u64) -> Vec<u8>> Writer<W, G> {
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        for line in lines {
            self.write(&line);
            self.backlog.done(line.len());
        }
    }

    fn write(&mut self, line: &[u8]) {
        if self.out.write_all(line).and_then(|()| self.out.flush()).is_err() {
            DROPPED.inc();
            return;
        }
        let dropped = DROPPED.get();
        if dropped > self.reported && self.out.write_all(&(self.gap)(dropped - self.reported)).is_ok() {
            self.reported = dropped;
        }
    }
}

/// The number of dropped lines.
pub(super) fn dropped() -> Counter {
    DROPPED.clone()
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = TextLine<'a>;

    fn make_writer(&'a self) -> TextLine<'a> {
        TextLine(self)
    }
}

/// A sink for JSON lines, whose strings it truncates.
#[derive(Clone, Debug)]
pub(super) struct Json(pub(super) LogSink);

impl<'a> MakeWriter<'a> for Json {
    type Writer = JsonLine<'a>;

    fn make_writer(&'a self) -> JsonLine<'a> {
        JsonLine(&self.0)
    }
}

/// Queues one formatted JSON line.
pub(super) struct JsonLine<'a>(&'a LogSink);

impl Write for JsonLine<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.put(escape::json(text, escape::LONGEST).as_bytes()),
            // Formatted text is always UTF-8.
            Err(_) => self.0.put(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Queues one formatted line: tracing's `fmt` layer writes each line with one call.
pub(super) struct TextLine<'a>(&'a LogSink);

impl Write for TextLine<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Fails, blocks or forwards writes, as the test wants.
    struct ScriptedWriter {
        full: Arc<std::sync::atomic::AtomicBool>,
        written: Sender<Vec<u8>>,
        /// Each write waits for one of these; `None` waits for nothing.
        turns: Option<Receiver<()>>,
    }

    impl Write for ScriptedWriter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(turns) = &self.turns {
                let _ = turns.recv();
            }
            if self.full.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn gap(_: u64) -> Vec<u8> {
        b"some were dropped".to_vec()
    }

    #[test]
    fn dropped_lines_are_counted_and_reported() {
        let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (sender, written) = channel();
        let out = ScriptedWriter { full: Arc::clone(&full), written: sender, turns: None };
        let sink = LogSink::start(out, gap).expect("a thread");
        let before = dropped().get();
        sink.put(b"lost");
        sink.flush(Duration::from_secs(10));
        assert!(dropped().get() > before);
        full.store(false, Ordering::Relaxed);
        sink.put(b"kept");
        assert_eq!(written.recv().expect("written"), b"kept");
        assert_eq!(written.recv().expect("written"), b"some were dropped");
    }

    #[test]
    fn a_stalled_reader_blocks_no_caller() {
        let (turns, backlog) = channel();
        let (sender, written) = channel();
        let out = ScriptedWriter { full: Arc::default(), written: sender, turns: Some(backlog) };
        let sink = LogSink::start(out, gap).expect("a thread");
        let before = dropped().get();
        for _ in 0..QUEUE + 10 {
            sink.put(b"line");
        }
        let large = vec![b'x'; QUEUE_BYTES];
        sink.put(&large);
        assert!(dropped().get() > before + 8, "the queue is bounded");
        sink.flush(Duration::from_millis(20));
        drop(turns);
        assert_eq!(written.recv().expect("continues"), b"line");
    }
}
