//! The signals that stop a daemon.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::info;

/// A second signal within this time is ignored: some supervisors send two.
pub(super) const SIGNAL_DEBOUNCE: Duration = Duration::from_secs(1);

/// The signals that stop the process. SIGHUP does not: service managers send it for a reload, which
/// is not needed, and its default action would end the process without draining.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// For a log that reaches the file size limit: with a handler, the write fails instead of ending
    /// the process.
    _file_size: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    /// The next signal at or after this time.
    pub(super) async fn next_after(&mut self, time: Instant) {
        loop {
            self.next().await;
            if Instant::now() >= time {
                return;
            }
            info!("ignoring a second signal so soon after the first; still stopping");
        }
    }

    pub(super) async fn next(&mut self) {
        let name = loop {
            tokio::select! {
                _ = self.terminate.recv() => break "SIGTERM",
                _ = self.interrupt.recv() => break "SIGINT",
                _ = self.hangup.recv() => info!(
                    "SIGHUP: nothing to reload; policy changes are picked up automatically, other configuration needs a restart"
                ),
            }
        };
        info!(signal = name, "signal received");
    }
}
