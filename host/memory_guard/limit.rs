//! The memory limit of the process: configured, or that of its control group.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;

use crate::files;
use crate::schema;

/// `memory_limit`: the memory limit of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, derive_more::Display)]
pub enum MemoryLimit {
    /// 90 % of the limit of the process's control group; none if the group has no limit.
    #[default]
    #[display("auto")]
    Auto,
    /// No limit.
    #[display("off")]
    Off,
    /// A size.
    Bytes(ByteSize),
}

/// The percentage of the control group's limit that is used by default. The group's usage includes
/// other memory, such as socket buffers and other processes of the container.
const AUTO: u64 = 90;

/// The maximum size of a kernel file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Limits from here on count as none: cgroup v1 reports "no limit" as a number near 2^63.
const UNLIMITED: u64 = 1 << 60;

impl MemoryLimit {
    /// The limit in bytes, if there is one.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::Bytes(bytes) => Some(bytes.as_u64()),
            Self::Auto => {
                let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
                let allowed = group_limit(&groups, read)?;
                Some(allowed / 100 * AUTO)
            }
        }
    }
}

fn read(file: &Path) -> Option<String> {
    files::read_text(file, MAX_FILE_BYTES).ok()
}

/// A text that is not a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a memory limit; use \"auto\", \"off\" or a size such as \"1GiB\"")]
pub struct InvalidLimit(String);

impl FromStr for MemoryLimit {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            size => size.parse().map(Self::Bytes).map_err(|_| InvalidLimit(size.to_owned())),
        }
    }
}

schema::as_text!(MemoryLimit);

/// The smallest limit of the process's control group and those around it. `groups` is
/// `/proc/self/cgroup`: lines of `number:controllers:path` (`cgroups(7)`).
fn group_limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files): (&str, &[&str]) = if controllers.is_empty() {
            ("/sys/fs/cgroup", &["memory.max", "memory.high"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", &["memory.limit_in_bytes"])
        } else {
            continue;
        };
        // In a container the path may be that of the host; then only the mount itself exists.
        let inside = Path::new(path.trim_start_matches('/'));
        for folder in inside.ancestors().map(|folder| Path::new(mount).join(folder)) {
            let paths = files.iter().map(|file| PathBuf::from(&folder).join(file));
            limits.extend(paths.filter_map(|file| read(&file)?.trim().parse::<u64>().ok()));
        }
    }
    limits.into_iter().filter(|limit| (1..UNLIMITED).contains(limit)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        group_limit(groups, |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let files = [
            ("/sys/fs/cgroup/pod/memory.max", "1000\n"),
            ("/sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/app/memory.high", "2000\n"),
        ];
        assert_eq!(limit("0::/pod/app\n", &files), Some(1000));
        assert_eq!(limit("0::/other\n", &files), None);
        assert_eq!(limit("0::/\n", &[("/sys/fs/cgroup/memory.max", "7")]), Some(7), "in a container");
        let first = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "500")];
        assert_eq!(limit("5:cpu:/a\n4:memory:/docker/a1\n", &first), Some(500), "version 1");
        let none = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")];
        assert_eq!(limit("4:memory:/\n", &none), None);
        assert_eq!(limit("odd\n\n", &files), None);
    }

    #[test]
    fn it_reads_what_it_writes() {
        for text in ["auto", "off"] {
            assert_eq!(text.parse::<MemoryLimit>().expect("a limit").to_string(), text);
        }
        assert_eq!("1GiB".parse(), Ok(MemoryLimit::Bytes(ByteSize::gib(1))));
        assert!("much".parse::<MemoryLimit>().expect_err("no limit").to_string().contains("`much`"));
        assert_eq!(MemoryLimit::Off.bytes(), None);
        assert_eq!(MemoryLimit::Bytes(ByteSize::mib(1)).bytes(), Some(1 << 20));
    }
}
