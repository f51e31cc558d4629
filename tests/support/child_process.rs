//! Child processes (Kafka, Redis, the gateway) that never outlive the tests.
//!
//! The process ends when its [`ChildProcess`] is dropped, and also when the test process ends in any other
//! way: by `exit`, a panic or SIGKILL. A small shell forks a watcher that reads a pipe from us, and
//! then executes the program, so that the program has the process id and exit status that we see.
//! When the test process ends, the pipe closes, and the watcher kills the program and removes its
//! directory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// `$1` is the directory to remove, the rest is the program. When the pipe closes, the watcher kills
/// the program and removes the directory. A line on the pipe means that there is nothing to kill, or
/// that another watcher owns the directory. The second `rm` removes what the dying program wrote
/// meanwhile.
const SCRIPT: &str = r#"
folder=$1; shift
exec 3<&0
(
    trap '' INT HUP TERM
    alive=yes
    while read -r line <&3; do
        case $line in
            ended) alive= ;;
            restarted) exit ;;
        esac
    done
    [ -z "$alive" ] || { kill -KILL $$; rm -rf "$folder"; sleep 1; }
    rm -rf "$folder"
) >/dev/null 2>&1 </dev/null &
exec "$@" 3<&- </dev/null
"#;

/// A running program with its own directory, which is removed at the end.
pub struct ChildProcess {
    child: Child,
    /// Separate from the child, whose `wait` would close it and trigger the watcher.
    pipe: ChildStdin,
    run: LaunchSpec,
}

/// Everything needed to start the program.
struct LaunchSpec {
    program: String,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
}

impl LaunchSpec {
    fn start(&self) -> io::Result<(Child, ChildStdin)> {
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg("leash").arg(&self.folder).arg(&self.program).args(&self.args);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn()?;
        let pipe = child.stdin.take().expect("stdin was asked to be a pipe");
        Ok((child, pipe))
    }
}

impl ChildProcess {
    /// Starts a program. Its stdout and stderr go to the file `log` in its directory.
    pub fn start(program: &str, args: &[String], folder: tempfile::TempDir) -> io::Result<Self> {
        Self::start_with(program, args, folder, &[])
    }

    /// The same with environment variables.
    pub fn start_with(
        program: &str,
        args: &[String],
        folder: tempfile::TempDir,
        environment: &[(String, String)],
    ) -> io::Result<Self> {
        // From here on, the watcher removes the directory.
        let folder = folder.keep();
        let (program, args, environment) = (program.to_owned(), args.to_vec(), environment.to_vec());
        let run = LaunchSpec { program, args, environment, folder };
        let (child, pipe) = run.start()?;
        Ok(Self { child, pipe, run })
    }

    /// Kills the program if it runs, and restarts it in the same directory; its output is appended to
    /// the same log.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        let (child, pipe) = self.run.start()?;
        self.child = child;
        let mut old = std::mem::replace(&mut self.pipe, pipe);
        let _ = old.write_all(b"restarted\n");
        Ok(())
    }

    /// The program's directory.
    pub fn folder(&self) -> &Path {
        &self.run.folder
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The output of the program so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.run.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit status, if the program has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours, so that it can be waited for")
    }

    /// Sends a signal, such as `TERM` or `STOP`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{signal} {} did not work", self.pid());
    }

    /// Kills the program and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The process is reaped, and its id may be reused: the watcher must not kill.
        let _ = self.pipe.write_all(b"ended\n");
    }

    /// Waits until the program exits; `None` at the deadline.
    pub async fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
        // The watcher does the same, unless the program was killed before the watcher existed.
        let _ = std::fs::remove_dir_all(&self.run.folder);
    }
}
