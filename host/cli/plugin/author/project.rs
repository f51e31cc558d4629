//! Finds and builds a policy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cli::plugin::author::{cases, language};
use crate::cli::{ConfigArgs, LARGEST_INPUT, OrUsage as _, read_input};
use crate::files;
use crate::wasm::RuntimeConfig;

/// The script that builds policies with any toolchain; the repository uses it, too.
const BUILD: &str = include_str!("../../../../plugins/build.sh");

/// The path of a policy.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PolicyPath {
    /// The policy: a project directory, which is built first, or a .wasm file.
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
}

/// The path of a policy and its configuration.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConfiguredPolicy {
    #[command(flatten)]
    pub(super) place: PolicyPath,
    /// The policy's configuration, as JSON. Default: `config` of cases.toml or cases.json next to the
    /// policy, if there is one.
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
}

/// The gateway that a policy is for.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    #[command(flatten)]
    gateway: ConfigArgs,
}

impl EngineArgs {
    /// The configuration of its runtime: its `[policies.wasm] features` and limits on compilation.
    ///
    /// # Errors
    /// When the gateway's configuration is invalid.
    pub(super) fn config(&self) -> anyhow::Result<RuntimeConfig> {
        Ok(self.gateway.load()?.policies.runtime_of_a_command())
    }
}

/// Limits on a policy's calls.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct CallLimits {
    /// The maximum duration of one call, as in the policy's [[plugin]]. A busy machine may need more.
    #[arg(long, value_name = "DURATION", default_value = "50ms", env = "HALLEY_PLUGIN_DEADLINE")]
    pub(super) deadline: humantime::Duration,
}

impl PolicyPath {
    /// The policy's file. A project is built first, but not put in place yet: a gateway may be
    /// watching that path.
    ///
    /// # Errors
    /// When there is no such policy, or it does not build.
    pub(super) fn policy(&self) -> anyhow::Result<PathBuf> {
        if !self.path.is_dir() {
            let file = self.path.is_file().then(|| self.path.clone());
            return file.with_context(|| format!("{} not found", self.path.display())).or_usage();
        }
        // The first build takes long and may fetch dependencies: show its output.
        let was_built = self.path.join(STAGED).is_dir();
        let built = build(&self.path, was_built)?;
        self.only(&built).or_usage()
    }

    fn only(&self, built: &[PathBuf]) -> anyhow::Result<PathBuf> {
        match built {
            [one] => Ok(one.clone()),
            [] => bail!(
                "{} produces no .wasm file; its `[lib]` needs `crate-type = [\"cdylib\"]`",
                self.path.display()
            ),
            several => {
                let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
                bail!("{} produces several policies; choose one of {}", self.path.display(), names.join(", "))
            }
        }
    }

    /// Puts a project's build in place and returns its path. A file is in place already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put_in_place(&self, built: &Path) -> anyhow::Result<PathBuf> {
        if self.path.is_dir() { put_in_place(&self.path, built) } else { Ok(built.to_owned()) }
    }

    /// The cases of the policy.
    ///
    /// # Errors
    /// When no cases are found.
    pub(super) fn cases(&self) -> anyhow::Result<PathBuf> {
        ensure!(self.path.exists(), "{} not found", self.path.display());
        let folder = self.folder();
        let files = ["cases.toml", "cases.json"].map(|name| folder.join(name));
        let found = files.into_iter().find(|file| file.is_file());
        found.with_context(|| {
            format!("no cases.toml or cases.json in {}; name the file with --cases", folder.display())
        })
    }

    /// The project directory. For a file: its directory, or the project that it was built from.
    pub(super) fn folder(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.clone();
        }
        let around = self.path.parent().unwrap_or(Path::new(""));
        let is_built = around.file_name().is_some_and(|name| name == "dist");
        let folder = if is_built { around.parent().unwrap_or(around) } else { around };
        if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() }
    }
}

impl ConfiguredPolicy {
    /// The configuration; empty if none is given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn config(&self) -> anyhow::Result<Value> {
        if let Some(file) = &self.plugin_config {
            let text = read_input(file)?;
            return serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()));
        }
        let cases = self.place.cases().ok().map(|file| cases::read(&file)).transpose()?;
        Ok(cases.and_then(|cases| cases.config).unwrap_or_else(|| serde_json::json!({})))
    }
}

/// Where builds are staged until they pass, and where they are put then.
const STAGED: &str = "target/halley-built";
const DIST: &str = "dist";

/// Puts the build of the project in this directory into its `dist`, atomically, and only if it
/// changed: a gateway may be watching.
///
/// # Errors
/// When it cannot be written.
pub(super) fn put_in_place(folder: &Path, built: &Path) -> anyhow::Result<PathBuf> {
    let name = built.file_name().unwrap_or_default();
    let place = folder.join(DIST).join(name);
    let put = || {
        let bytes = files::read(built, LARGEST_INPUT).map_err(std::io::Error::other)?;
        if files::read(&place, LARGEST_INPUT).is_ok_and(|before| before == bytes) {
            return Ok(());
        }
        fs::create_dir_all(folder.join(DIST))?;
        let staged = folder.join(DIST).join(format!(".{}.new", name.display()));
        fs::write(&staged, bytes)?;
        fs::rename(staged, &place)
    };
    put().with_context(|| format!("cannot write {}", place.display()))?;
    Ok(place)
}

/// Builds the project in a directory. Returns the files that were built, which are not in place yet.
///
/// # Errors
/// When there is no project or no shell, or the project does not build.
pub(super) fn build(folder: &Path, quietly: bool) -> anyhow::Result<Vec<PathBuf>> {
    let built = build_command(folder, quietly).and_then(|command| run_build(folder, command)).or_usage()?;
    built.with_context(|| format!("{} does not build; see the errors above", folder.display()))
}

/// The command that builds a project.
fn build_command(folder: &Path, quietly: bool) -> anyhow::Result<Command> {
    let (target, staged) = (folder.join("target"), folder.join(STAGED));
    if language::is_project(folder) {
        fs::create_dir_all(&staged).with_context(|| format!("cannot write to {}", folder.display()))?;
        return language::build_command(folder, &target);
    }
    ensure!(
        folder.join("Cargo.toml").is_file(),
        "no Cargo.toml in {}; `halley plugin new NAME` creates a project",
        folder.display()
    );
    let manifest = files::read_text(&folder.join("Cargo.toml"), LARGEST_INPUT)?;
    // A workspace may have policies as members.
    ensure!(
        !manifest.contains("[package]") || manifest.contains("cdylib"),
        "{} is not a policy: its Cargo.toml has no `crate-type = [\"cdylib\"]`; `halley plugin new NAME` creates one",
        folder.display()
    );
    fs::create_dir_all(&staged).with_context(|| format!("cannot write to {}", folder.display()))?;
    let script = target.join("halley-build.sh");
    fs::write(&script, BUILD).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = Command::new("sh");
    command.arg(&script).arg(folder);
    if std::env::var_os("HALLEY_GUEST_TARGET").is_none() {
        command.env("HALLEY_GUEST_TARGET", target.canonicalize()?.join("guest"));
    }
    if quietly {
        command.env("HALLEY_GUEST_QUIET", "1").env("CARGO_TERM_QUIET", "true");
    }
    Ok(command)
}

/// The files that were built; `None` if the build failed, after the compiler has printed why.
fn run_build(folder: &Path, mut command: Command) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let staged = folder.join(STAGED);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    // The build must not install packages without consent.
    command.env("HALLEY_GUEST_INSTALL", "no").env("HALLEY_GUEST_DIST", staged.canonicalize()?);
    let built = command.output().context("building policies needs a shell (`sh`)")?;
    if !built.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&built.stdout).lines().map(PathBuf::from).collect()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::policy::PluginConfig;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        limits: CallLimits,
    }

    #[test]
    fn default_deadline_equals_the_gateways() {
        let Line { limits } = Line::parse_from(["test", "--deadline", "70ms"]);
        assert_eq!(*limits.deadline, std::time::Duration::from_millis(70));
        let default = <Line as clap::CommandFactory>::command();
        let deadline = default.get_arguments().find(|arg| arg.get_id() == "deadline").unwrap();
        let default: humantime::Duration =
            deadline.get_default_values()[0].to_str().unwrap().parse().unwrap();
        assert_eq!(*default, PluginConfig::default().deadline);
    }

    #[test]
    fn unchanged_builds_do_not_replace_the_file() {
        let project = tempfile::tempdir().unwrap();
        let built = project.path().join("policy.wasm");
        fs::write(&built, b"one").unwrap();
        let place = put_in_place(project.path(), &built).unwrap();
        assert_eq!(place, project.path().join("dist/policy.wasm"));
        let written = fs::metadata(&place).unwrap().modified().unwrap();
        put_in_place(project.path(), &built).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().modified().unwrap(), written);
        fs::write(&built, b"two").unwrap();
        put_in_place(project.path(), &built).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"two");
        assert_eq!(fs::read_dir(project.path().join("dist")).unwrap().count(), 1);
    }
}
