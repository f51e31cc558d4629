//! Keeps the process below its memory limit: near it, no further records are admitted.
//!
//! The memory of a record is estimated when it is admitted ([`crate::message::Record::size`]), and
//! the in-flight limits bound the sum. The guard covers what the estimate misses: otherwise the
//! kernel kills the process, and its successor reads the same records and is killed as well.
//!
//! The guard only decides whether records may be admitted. The consumer still admits one record
//! when nothing is in flight, so a process that needs most of its memory itself is slow, not stuck.

mod hysteresis;
mod limit;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use parking_lot::Mutex;
use tracing::{info, warn};

pub use limit::{InvalidLimit, MemoryLimit};

use hysteresis::{AdmissionChange, Hysteresis};

use crate::files;
use crate::telemetry::{Counter, Gauge, metrics};

/// How often memory is measured.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// How long admission may be stopped before readiness reports it.
const STALL_AFTER: Duration = Duration::from_secs(5);

metrics! {
    /// The guard's metrics.
    #[derive(Clone, Default)]
    pub struct Metrics {
        /// Resident memory of the process.
        resident: Gauge = "halley_memory_resident_bytes";
        /// The memory limit of the process; 0 means none.
        limit: Gauge = "halley_memory_limit_bytes";
        /// 1 while no records are admitted because the memory limit is near.
        stopped: Gauge = "halley_memory_admission_stopped";
        /// How often admission has stopped because the memory limit was near.
        stops: Counter = "halley_memory_admission_stops";
    }
}

/// Since when admission has been stopped, for readiness. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryReport(Arc<Mutex<Option<AdmissionStop>>>);

#[derive(Clone, Copy)]
struct AdmissionStop {
    since: Instant,
    resident: u64,
    limit: u64,
}

impl MemoryReport {
    /// Why records are not flowing; `None` if they are, or stopped only recently.
    pub fn problem(&self) -> Option<String> {
        let AdmissionStop { since, resident, limit } = (*self.0.lock())?;
        let for_seconds = since.elapsed();
        (for_seconds >= STALL_AFTER).then(|| {
            format!(
                "memory: {} of {} are in use, so records have been admitted one at a time for {} s; raise the memory limit of the process, or lower `[delivery] max_in_flight_bytes`",
                ByteSize::b(resident),
                ByteSize::b(limit),
                for_seconds.as_secs()
            )
        })
    }
}

/// Watches the process's memory. The polling thread owns it.
pub struct MemoryGuard {
    hysteresis: Option<Hysteresis>,
    measure: Box<dyn Fn() -> Option<u64> + Send>,
    next: Option<Instant>,
    report: MemoryReport,
    metrics: Metrics,
}

impl MemoryGuard {
    /// A guard of this process, with this limit in bytes.
    pub fn new(limit: Option<u64>, metrics: Metrics) -> Self {
        let statm = files::open_kernel("/proc/self/statm");
        let measure = move || resident(statm.as_ref()?);
        Self::measuring(limit, metrics, Box::new(measure))
    }

    pub(crate) fn measuring(
        limit: Option<u64>,
        metrics: Metrics,
        measure: Box<dyn Fn() -> Option<u64> + Send>,
    ) -> Self {
        metrics.limit.set(limit.map_or(0, |limit| limit as i64));
        Self {
            hysteresis: limit.map(Hysteresis::new),
            measure,
            next: None,
            report: MemoryReport::default(),
            metrics,
        }
    }

    /// For readiness.
    pub fn report(&self) -> MemoryReport {
        self.report.clone()
    }

    /// Whether admission is stopped, as of the last measurement.
    pub fn is_stopped(&self) -> bool {
        self.hysteresis.as_ref().is_some_and(Hysteresis::is_stopped)
    }

    /// Measures, if a measurement is due.
    pub fn update(&mut self, now: Instant) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + MEASURE_EVERY);
        let Some(resident) = (self.measure)() else { return };
        self.metrics.resident.set(resident as i64);
        let Some(hysteresis) = &mut self.hysteresis else { return };
        let (change, limit) = (hysteresis.update(resident), hysteresis.limit());
        let mut stopped = self.report.0.lock();
        match change {
            AdmissionChange::Stopped => {
                self.metrics.stops.inc();
                warn!(
                    resident = %ByteSize::b(resident), limit = %ByteSize::b(limit),
                    "the memory limit is near: holding records until those in flight are settled"
                );
                *stopped = Some(AdmissionStop { since: now, resident, limit });
            }
            AdmissionChange::Resumed => {
                info!(resident = %ByteSize::b(resident), "recovered: memory is free again, admitting records");
                *stopped = None;
            }
            AdmissionChange::None => {
                if let Some(stopped) = &mut *stopped {
                    stopped.resident = resident;
                }
            }
        }
        self.metrics.stopped.set(i64::from(stopped.is_some()));
    }
}

/// Resident memory in bytes (`proc_pid_statm(5)`: the second number, in pages).
fn resident(statm: &File) -> Option<u64> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn this_process_is_measured() {
        let resident = resident(&File::open("/proc/self/statm").expect("Linux")).expect("a number");
        assert!((1 << 20..1 << 40).contains(&resident), "{resident}");
    }

    #[test]
    fn a_stop_shows_in_metrics_and_later_in_readiness() {
        let memory = Arc::new(AtomicU64::new(50));
        let measure = {
            let memory = Arc::clone(&memory);
            Box::new(move || Some(memory.load(Ordering::Relaxed)))
        };
        let metrics = Metrics::default();
        let mut guard = MemoryGuard::measuring(Some(100), metrics.clone(), measure);
        let report = guard.report();
        let long_ago = Instant::now().checked_sub(2 * STALL_AFTER).expect("the machine runs for longer");
        guard.update(long_ago);
        assert!(!guard.is_stopped());

        memory.store(95, Ordering::Relaxed);
        guard.update(long_ago + MEASURE_EVERY / 2);
        assert!(!guard.is_stopped(), "it is not measured all the time");
        guard.update(long_ago + MEASURE_EVERY);
        assert!(guard.is_stopped());
        assert_eq!((metrics.stopped.get(), metrics.stops.get(), metrics.limit.get()), (1, 1, 100));
        let problem = report.problem().expect("it has stopped for long");
        assert!(problem.contains("95 B of 100 B"), "{problem}");

        memory.store(10, Ordering::Relaxed);
        guard.update(Instant::now());
        assert!(!guard.is_stopped());
        assert_eq!((report.problem(), metrics.stopped.get()), (None, 0));
    }
}
