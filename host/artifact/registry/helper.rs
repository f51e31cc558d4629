//! Credential helpers: programs that read credentials from a keychain, as docker's and podman's settings
//! name them (`credsStore`, `credHelpers`).
//!
//! The crate for this (`docker_credential`) waits for a helper without a deadline, reads unlimited output,
//! and puts it into its errors. Here a helper has a deadline and an output limit, is killed together with
//! its child processes, and its output never reaches a log or an error.
//!
//! Source of the protocol: github.com/docker/docker-credential-helpers.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

/// How long a helper may take: some request a token from a service.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// The maximum size of a helper's output, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// What a helper says when it has no credentials for a server.
const NOT_FOUND: &[u8] = b"credentials not found";

/// Why a helper gave no answer. Never contains its output, which could be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("its name has other characters than letters, digits, `-`, `_` and `.`")]
    Name,
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    #[error("there is no thread for it: {0}")]
    Thread(io::Error),
    #[error("it has no output")]
    NoOutput,
    #[error("its answer cannot be read: {0}")]
    Read(io::Error),
    #[error("it gives no answer within {0:?}")]
    Timeout(Duration),
    #[error("it writes more than {MAX_ANSWER} bytes")]
    TooLarge,
    #[error("it gave no credentials; run it in a terminal to see why")]
    NoCredentials,
}

/// A helper's answer.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) secret: String,
}

/// The command of the helper with this name.
///
/// # Errors
/// When the name is invalid: a path could run a program that is not a helper.
pub(super) fn command(name: &str) -> Result<Command, HelperError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(HelperError::Name);
    }
    Ok(Command::new(format!("docker-credential-{name}")))
}

/// Asks a helper for the credentials of a server; `None` if it has none. Blocks for up to the deadline.
///
/// # Errors
/// When it cannot be started, takes too long, or its answer is invalid.
pub(super) fn ask(
    mut command: Command,
    server: &str,
    deadline: Duration,
) -> Result<Option<Login>, HelperError> {
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut helper = Helper(command.spawn().map_err(HelperError::Start)?);
    if let Some(mut stdin) = helper.0.stdin.take() {
        // A pipe's buffer holds a name. A helper that did not read it fails with its answer.
        let _ = stdin.write_all(server.as_bytes());
    }
    let answer = helper.answer(deadline)?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(HelperError::TooLarge);
    }
    match serde_json::from_slice(&answer) {
        Ok(login) => Ok(Some(login)),
        Err(_) if answer.starts_with(NOT_FOUND) => Ok(None),
        Err(_) => Err(HelperError::NoCredentials),
    }
}

/// A running helper. Dropping it kills it together with its child processes.
struct Helper(Child);

impl Helper {
    fn answer(&mut self, deadline: Duration) -> Result<Vec<u8>, HelperError> {
        let stdout = self.0.stdout.take().ok_or(HelperError::NoOutput)?;
        let (sender, answer) = mpsc::sync_channel(1);
        let read = move || {
            let mut bytes = Vec::new();
            let read = stdout.take(MAX_ANSWER + 1).read_to_end(&mut bytes);
            // Fails if the deadline has passed.
            let _ = sender.send(read.map(|_| bytes));
        };
        let thread = std::thread::Builder::new().name("credentials".into());
        thread.spawn(read).map_err(HelperError::Thread)?;
        match answer.recv_timeout(deadline) {
            Ok(read) => read.map_err(HelperError::Read),
            Err(_) => Err(HelperError::Timeout(deadline)),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It leads a process group, so that its children are killed as well, which closes the pipe that
        // the thread reads. It may have ended already.
        if let Ok(id) = i32::try_from(self.0.id())
            && let Some(group) = Pid::from_raw(id)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn script(text: &str) -> Result<Option<Login>, HelperError> {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        ask(command, "one.example", Duration::from_secs(20))
    }

    #[test]
    fn a_helper_is_asked_for_the_server() {
        let login =
            script(r#"read -r s; printf '{"ServerURL":"%s","Username":"u","Secret":"for %s"}' "$s" "$s""#);
        let expected = Login { username: "u".into(), secret: "for one.example".into() };
        assert_eq!(login.unwrap(), Some(expected));
        let none = script("echo 'credentials not found in native keychain'; exit 1");
        assert_eq!(none.unwrap(), None);
    }

    #[test]
    fn what_a_helper_says_is_bounded_and_told_to_nobody() {
        let why = script("echo 'the secret is 4711'; exit 1").expect_err("no credentials").to_string();
        assert!(!why.contains("4711"), "{why}");
        let why = script("yes secret").expect_err("too much").to_string();
        assert!(why.contains("more than 65536 bytes") && !why.contains("secret"), "{why}");
        let missing = ask(command("of-this-name-there-is-none").unwrap(), "one.example", DEADLINE);
        assert!(matches!(missing, Err(HelperError::Start(_))), "{missing:?}");
        for odd in ["", "../evil", "a b", "/bin/sh"] {
            assert!(command(odd).is_err(), "{odd}");
        }
    }

    /// The helper's child keeps the output open, as a daemon would.
    #[test]
    fn a_helper_that_hangs_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sleep 600 & echo $! $$ > '{}'; wait", pids.display())]);
        let begun = Instant::now();
        let why = ask(command, "one.example", Duration::from_secs(2)).expect_err("it hangs");
        assert_eq!(why.to_string(), "it gives no answer within 2s");
        let pids = std::fs::read_to_string(pids).expect("it ran");
        // A dead child may not have been reaped yet.
        let is_dead = |pid: &str| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        while !pids.split_whitespace().all(is_dead) {
            assert!(begun.elapsed() < Duration::from_secs(60), "what it started goes on");
            std::thread::yield_now();
        }
    }
}
