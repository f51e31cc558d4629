//! Reports the state of the daemon to systemd, or to another service manager that sets `NOTIFY_SOCKET`
//! (sd_notify(3)).
//!
//! `READY=1` is sent once the gateway has started, whether or not Kafka and Redis answer: a start that
//! waits for them would be ended by the service manager, and a restart mends neither. What is missing
//! is in `STATUS=`, as in `/readyz`. The watchdog is fed while the polling thread polls and the runtime
//! runs tasks: it ends a process that hangs, and none that waits for others.
//!
//! All of it is sent from a thread of its own, which may block: nobody else waits for the service
//! manager.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Handle as Runtime;
use tracing::{debug, warn};

use crate::gateway::Handle;

/// How often the status is sent when there is no watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// How often within the watchdog's time it is fed.
const FEEDS_PER_TIMEOUT: u32 = 3;
/// What a stop may take in addition to its grace period.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The thread that reports. It ends when this is dropped.
pub(super) struct ServiceManager {
    stopping: Option<Sender<Duration>>,
}

impl ServiceManager {
    /// Reports that the daemon has started, and from then on how it is doing. Without a service manager
    /// this does nothing.
    pub(super) fn start(gateway: Handle) -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self { stopping: None };
        }
        let (stopping, stops) = channel();
        let report = Report { gateway, stops, runtime: Runtime::current() };
        let started = std::thread::Builder::new().name("service-manager".into()).spawn(move || report.run());
        if let Err(error) = started {
            warn!(%error, "cannot report to the service manager");
        }
        Self { stopping: Some(stopping) }
    }

    /// Reports that the daemon drains, for up to this long.
    pub(super) fn stopping(&self, grace: Duration) {
        if let Some(stopping) = &self.stopping {
            // Fails only if the thread could not be started.
            let _ = stopping.send(grace);
        }
    }
}

struct Report {
    gateway: Handle,
    stops: Receiver<Duration>,
    runtime: Runtime,
}

impl Report {
    fn run(self) {
        let watchdog = sd_notify::watchdog_enabled();
        let interval = watchdog.map_or(STATUS_INTERVAL, |timeout| timeout / FEEDS_PER_TIMEOUT);
        notify(&[NotifyState::Ready]);
        let mut polls = self.gateway.polls();
        loop {
            let problems = self.gateway.problems();
            notify(&[NotifyState::Status(problems.first().map_or("delivering", String::as_str))]);
            match self.stops.recv_timeout(interval) {
                Ok(grace) => {
                    let micros = u32::try_from((grace + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
                    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = self.gateway.polls();
            if now != polls && self.runs_tasks(interval) {
                notify(&[NotifyState::Watchdog]);
            } else if watchdog.is_some() {
                warn!(
                    polls = now,
                    "no progress since the watchdog was fed; the service manager ends the process if this lasts"
                );
            }
            polls = now;
        }
    }

    /// Whether the runtime runs a task within this time.
    fn runs_tasks(&self, within: Duration) -> bool {
        let (ran, runs) = channel();
        self.runtime.spawn(async move {
            let _ = ran.send(());
        });
        runs.recv_timeout(within).is_ok()
    }
}

/// Sends to the service manager.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager cannot be notified");
    }
}
