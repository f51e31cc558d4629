//! The signals that stop a daemon, or a command that has to clean up.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::info;

/// A second signal within this time is ignored: some supervisors send two.
pub(super) const SIGNAL_DEBOUNCE: Duration = Duration::from_secs(1);

/// Waits for SIGINT or SIGTERM: for commands that clean up before they end.
///
/// # Errors
/// If the process may not handle signals.
pub(super) async fn interrupted() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt,
        _ = terminate.recv() => Ok(()),
    }
}

/// The signals that stop the process. SIGHUP does not: it has the policies read at once. Tokens, keys
/// and certificates are read again whenever their files change.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reload: Arc<Notify>,
    /// For a log that reaches the file size limit: with a handler, the write fails instead of ending
    /// the process.
    _file_size: Signal,
}

impl Signals {
    /// `reload` is notified of each SIGHUP.
    pub(super) fn new(reload: Arc<Notify>) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            reload,
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
                _ = self.hangup.recv() => {
                    info!("SIGHUP: reading the configuration and the policies again");
                    self.reload.notify_one();
                }
            }
        };
        info!(signal = name, "signal received");
    }
}
