//! The authors' commands as a new user runs them: the real binary in a fresh directory, with its
//! output and its exit codes.

mod cases;
mod dev;
mod projects;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{folder, repository};

/// A fresh working directory.
struct CliFixture(tempfile::TempDir);

/// A command's exit code and output.
#[derive(Debug)]
struct CommandOutput {
    code: Option<i32>,
    out: String,
    err: String,
}

impl CliFixture {
    fn new() -> Self {
        Self(folder("author"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// Runs `halley plugin ARGS` here.
    fn plugin(&self, args: &[&str]) -> CommandOutput {
        self.plugin_in(".", args)
    }

    fn plugin_in(&self, place: &str, args: &[&str]) -> CommandOutput {
        said(self.command(place, args).stdin(Stdio::null()))
    }

    fn command(&self, place: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.arg("plugin").args(args).current_dir(self.path(place)).envs(shared_builds());
        command
    }

    /// A user's project, with the dependency versions of the repository.
    fn project(&self, name: &str, hooks: &str) {
        let made = self.plugin(&["new", name, "--hook", hooks]);
        assert_eq!(made.code, Some(0), "{made:?}");
        std::fs::copy(repository("plugins/Cargo.lock"), self.path(name).join("Cargo.lock")).expect("copied");
    }
}

/// Builds share the target directory of the bundled policies, so that dependencies are built once.
fn shared_builds() -> [(&'static str, PathBuf); 3] {
    let target = repository("plugins/target");
    [
        ("HALLEY_GUEST_TARGET", target.join("guest")),
        ("CARGO_TARGET_DIR", target),
        // Tests run in parallel, and this build's engine is slow.
        ("HALLEY_PLUGIN_DEADLINE", "5s".into()),
    ]
}

fn said(command: &mut Command) -> CommandOutput {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    CommandOutput { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A guest from the tests.
fn guest(name: &str) -> String {
    let file = repository("tests/guests").join(name);
    assert!(file.is_file(), "{} is missing; run `make plugins`", file.display());
    file.display().to_string()
}

fn sha256(file: &Path) -> String {
    use sha2::Digest as _;
    let bytes = std::fs::read(file).expect("it was built");
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
