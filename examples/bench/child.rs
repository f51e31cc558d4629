//! Child processes that never outlive the benchmark, however it ends.
//!
//! A small shell leaves a watcher behind that reads a pipe from this process, and then becomes the
//! program. When this process ends, by Ctrl-C or SIGKILL too, the pipe closes: the watcher kills the
//! program and removes its directory.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// `$1` is the directory to remove, the rest is the program. The watcher ignores Ctrl-C, which goes to
/// the whole process group. The second `rm` removes what the dying program wrote meanwhile.
const SCRIPT: &str = r#"
directory=$1; shift
exec 3<&0
(
    trap '' INT HUP TERM
    read -r ended <&3 || kill -KILL $$
    rm -rf "$directory"; sleep 1; rm -rf "$directory"
) >/dev/null 2>&1 </dev/null &
exec "$@" 3<&- </dev/null
"#;

/// A running program with its own directory. It is killed, and the directory removed, with this value.
pub(crate) struct ChildProcess {
    child: Child,
    directory: PathBuf,
}

impl ChildProcess {
    /// Starts a program. Its output goes to the file `log` in its directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(program: &str, args: &[String], directory: tempfile::TempDir) -> io::Result<Self> {
        let log = File::create(directory.path().join("log"))?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg("watcher").arg(directory.path()).arg(program).args(args);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        // From here on the watcher removes it.
        Ok(Self { child, directory: directory.keep() })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit status, when it has ended by itself.
    ///
    /// # Errors
    /// When the system call fails.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end; `None` when it still runs after the deadline.
    ///
    /// # Errors
    /// When the system call fails.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + deadline;
        while Instant::now() < until {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // `wait` closes the pipe, and the watcher would kill a process that has ended, or another one
        // with the same id. So the watcher is informed first.
        drop(self.child.kill());
        if let Some(pipe) = &mut self.child.stdin {
            drop(io::Write::write_all(pipe, b"ended\n"));
        }
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
