//! Where a policy is, and how it is built.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cli::plugin::author::cases;
use crate::cli::{FAILURE, MISTAKE, fail};

/// The script that builds policies, wherever the toolchain is from; the repository uses it, too.
const BUILD: &str = include_str!("../../../../plugins/build.sh");

/// Where a policy is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Place {
    /// The policy: the folder of a project, which is built first, or a .wasm file.
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
}

/// Where a policy is, with the configuration that it gets.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Configured {
    #[command(flatten)]
    pub(super) place: Place,
    /// What the policy finds in its configuration, as JSON. Without it, `config` of cases.toml or
    /// cases.json beside the policy, where there is one.
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
}

impl Place {
    /// The policy's file, built first where this is a project.
    ///
    /// # Errors
    /// With the exit code, when there is none; why was said then.
    pub(super) fn policy(&self) -> Result<PathBuf, u8> {
        match self.find() {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(FAILURE),
            Err(why) => Err(mistake(&why)),
        }
    }

    fn find(&self) -> anyhow::Result<Option<PathBuf>> {
        if !self.path.is_dir() {
            ensure!(self.path.is_file(), "there is no {}", self.path.display());
            return Ok(Some(self.path.clone()));
        }
        // The first build takes its time, and may fetch things: it is to be seen.
        let was_built = self.path.join("dist").is_dir();
        let Some(built) = build(&self.path, was_built)? else { return Ok(None) };
        match &built[..] {
            [one] => Ok(Some(one.clone())),
            [] => bail!(
                "{} makes no .wasm file; its `[lib]` wants `crate-type = [\"cdylib\"]`",
                self.path.display()
            ),
            several => {
                let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
                bail!("{} makes several policies; give one of {}", self.path.display(), names.join(", "))
            }
        }
    }

    /// The cases beside the policy.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn cases(&self) -> anyhow::Result<PathBuf> {
        ensure!(self.path.exists(), "there is no {}", self.path.display());
        let folder = self.folder();
        let files = ["cases.toml", "cases.json"].map(|name| folder.join(name));
        let found = files.into_iter().find(|file| file.is_file());
        found.with_context(|| {
            format!(
                "there is no cases.toml or cases.json in {}; name the file with --cases",
                folder.display()
            )
        })
    }

    /// The project's folder; of a file, the one that it is in, or that it was built from.
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

impl Configured {
    /// The configuration; an empty one where nothing says what it is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn config(&self) -> anyhow::Result<Value> {
        if let Some(file) = &self.plugin_config {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            return serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()));
        }
        let beside = self.place.cases().ok().map(|file| cases::read(&file)).transpose()?;
        Ok(beside.and_then(|cases| cases.config).unwrap_or_else(|| serde_json::json!({})))
    }
}

/// Builds the project in a folder; answers with the files that were made, `None` when that failed,
/// which was said then.
///
/// # Errors
/// When there is no project, or no shell.
pub(super) fn build(folder: &Path, quietly: bool) -> anyhow::Result<Option<Vec<PathBuf>>> {
    ensure!(
        folder.join("Cargo.toml").is_file(),
        "there is no Cargo.toml in {}; `halley plugin new NAME` makes a project",
        folder.display()
    );
    let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
    // A workspace may have policies as members.
    ensure!(
        !manifest.contains("[package]") || manifest.contains("cdylib"),
        "{} is no policy: its Cargo.toml has no `crate-type = [\"cdylib\"]`; `halley plugin new NAME` makes one",
        folder.display()
    );
    let target = folder.join("target");
    fs::create_dir_all(&target).with_context(|| format!("cannot write to {}", folder.display()))?;
    let script = target.join("halley-build.sh");
    fs::write(&script, BUILD).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = Command::new("sh");
    command.arg(&script).arg(folder).stdin(Stdio::null()).stderr(Stdio::inherit());
    // Whoever builds a policy did not ask for packages.
    command.env("HALLEY_GUEST_INSTALL", "no");
    if std::env::var_os("HALLEY_GUEST_TARGET").is_none() {
        command.env("HALLEY_GUEST_TARGET", target.canonicalize()?.join("guest"));
    }
    if quietly {
        command.env("HALLEY_GUEST_QUIET", "1").env("CARGO_TERM_QUIET", "true");
    }
    let built = command.output().context("there is no shell (`sh`), which builds policies")?;
    if !built.status.success() {
        fail(&format!("{} does not build; what is wrong stands above", folder.display()));
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&built.stdout).lines().map(PathBuf::from).collect()))
}

/// Says what is wrong with what was given; the exit code for it.
pub(super) fn mistake(mistake: &anyhow::Error) -> u8 {
    fail(&format!("{mistake:#}"));
    MISTAKE
}

/// Writes a file, and the folders that it is in.
///
/// # Errors
/// When that cannot be.
pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let done = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
        let mut new = fs::File::create_new(file)?;
        new.write_all(text.as_bytes())
    });
    done.with_context(|| format!("cannot write {}", file.display()))
}
