//! What every process reports of itself: `process_*`, as Prometheus' client libraries name them, and
//! `halley_build_info`.
//!
//! Read from `/proc` at each scrape; what cannot be read is left out. Nothing is exported on other systems
//! than Linux.

use std::fmt;
use std::path::Path;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use crate::files;

/// Which release this is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    revision: &'static str,
}

/// Registers `halley_build_info` and the metrics of the process.
pub(super) fn register(registry: &mut Registry) {
    let build = Family::<BuildLabels, Gauge>::default();
    let labels = BuildLabels { version: env!("CARGO_PKG_VERSION"), revision: env!("HALLEY_REVISION") };
    build.get_or_create(&labels).set(1);
    registry.register("halley_build_info", "The release, as labels; always 1", build);
    registry.register_collector(Box::new(ProcessCollector));
}

/// Reads `/proc` at each scrape.
#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let process = ProcessStats::read();
        let gauge = |value: Option<u64>| value.map(|value| boxed(ConstGauge::new(value)));
        let seconds = process.cpu_seconds.map(|seconds| boxed(ConstCounter::new(seconds)));
        let start = process.start_seconds.map(|start| boxed(ConstGauge::new(start)));
        let all = [
            ("process_cpu_seconds", "CPU time of the process, user and system.", seconds),
            ("process_start_time_seconds", "When the process started, in seconds since 1970.", start),
            ("process_resident_memory_bytes", "Resident memory.", gauge(process.resident_bytes)),
            ("process_virtual_memory_bytes", "Virtual memory.", gauge(process.virtual_bytes)),
            ("process_open_fds", "Open files and sockets.", gauge(process.open_files)),
            ("process_max_fds", "The limit on open files and sockets.", gauge(process.max_files)),
        ];
        for (name, help, value) in all {
            if let Some(value) = value {
                value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn boxed(metric: impl EncodeMetric + 'static) -> Box<dyn EncodeMetric> {
    Box::new(metric)
}

/// The unit of times in `/proc`: 1/100 s on every architecture that Rust supports (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// The maximum size of a file in `/proc` that is read, in bytes; `/proc/stat` has a line for each CPU.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// One reading of `/proc`.
#[derive(Debug, Default, PartialEq)]
struct ProcessStats {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

impl ProcessStats {
    fn read() -> Self {
        let read = |path: &str| files::read_text(Path::new(path), MAX_FILE_BYTES).ok();
        let stat = read("/proc/self/stat");
        let boot = read("/proc/stat").as_deref().and_then(boot_seconds);
        let mut process = stat.as_deref().and_then(|stat| Self::parse(stat, boot)).unwrap_or_default();
        // The directory that is being read is one of them.
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1));
        process.open_files = open.and_then(|open| u64::try_from(open).ok());
        process.max_files = getrlimit(Resource::Nofile).current;
        process
    }

    /// Parses `proc_pid_stat(5)`. The name of the program comes second, in parentheses, and may contain
    /// anything; what follows is counted from its end.
    fn parse(stat: &str, boot: Option<f64>) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The manual counts from 1, and the state after the name is its third field.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let seconds = |field: usize| number(field).map(|ticks| ticks as f64 / TICKS_PER_SECOND);
        let (user, system, started) = (seconds(14)?, seconds(15)?, seconds(22)?);
        Some(Self {
            cpu_seconds: Some(user + system),
            start_seconds: boot.map(|boot| boot + started),
            virtual_bytes: number(23),
            resident_bytes: number(24).map(|pages| pages * rustix::param::page_size() as u64),
            ..Self::default()
        })
    }
}

/// When the system started, in seconds since 1970, out of `/proc/stat`.
fn boot_seconds(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_may_contain_anything() {
        let fields = "S 1 2 3 0 -1 4194560 11 0 0 0 150 50 0 0 20 0 9 0 1200 4096 7 18446744073709551615";
        let boot = boot_seconds("cpu  1 2 3\nbtime 1700000000\nprocesses 5\n");
        let process = ProcessStats::parse(&format!("42 (a) b ( 1 2)) {fields}\n"), boot);
        let expected = ProcessStats {
            cpu_seconds: Some(2.0),
            start_seconds: Some(1_700_000_012.0),
            virtual_bytes: Some(4096),
            resident_bytes: Some(7 * rustix::param::page_size() as u64),
            ..ProcessStats::default()
        };
        assert_eq!(process, Some(expected));
        for odd in ["", "1 (x)", "1 (x) S 2 3", "1 x S"] {
            assert_eq!(ProcessStats::parse(odd, boot), None, "{odd}");
        }
    }

    #[test]
    fn this_process_is_measured() {
        let ProcessStats { cpu_seconds, start_seconds, resident_bytes, virtual_bytes, open_files, max_files } =
            ProcessStats::read();
        assert!(cpu_seconds.is_some());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let ran = now.as_secs_f64() - start_seconds.expect("Linux");
        assert!((-2.0..86_400.0).contains(&ran), "{ran}");
        assert!(resident_bytes > Some(1 << 20) && virtual_bytes > resident_bytes, "{resident_bytes:?}");
        assert!(open_files >= Some(3) && open_files <= max_files.or(open_files), "{open_files:?}");
    }
}
