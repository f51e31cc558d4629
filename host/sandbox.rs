//! Restricts the process at its start, so that a compromised gateway can do less.
//!
//! With `no_new_privs`, programs that it executes gain no privileges. With Landlock, if the kernel
//! supports it, it writes only below the configured paths, listens only on the admin ports, executes
//! only its own binary, and signals only its own children. Reading is not restricted: certificates,
//! key files and policies may be anywhere. Neither are outgoing connections: comets come and go on
//! any port, and `[comets] allow` restricts which ones are called.
//!
//! Sources: Linux' `Documentation/userspace-api/landlock.rst`, `no_new_privs.rst`.

use std::path::PathBuf;

use anyhow::Context as _;

/// The `[process]` section.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the process restricts itself.
    pub sandbox: SandboxMode,
}

/// How the process restricts itself.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// As far as the kernel supports it.
    #[default]
    Auto,
    /// Completely, otherwise the process does not start.
    Required,
    /// Not at all.
    Off,
}

/// What a restricted process may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxRules {
    /// Writable files, and directories with everything below. Missing ones are skipped.
    pub writable: Vec<PathBuf>,
    /// TCP ports to listen on; 0 means any free port.
    pub ports: Vec<u16>,
}

/// How much of it the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, derive_more::Display)]
pub enum SandboxStatus {
    /// Everything.
    #[display("fully enforced")]
    Fully,
    /// What this kernel supports; newer ones support more.
    #[display("partly enforced: this kernel does not support all of it")]
    Partly,
    /// `no_new_privs` only.
    #[display("no_new_privs only: this kernel has no Landlock")]
    NoNewPrivileges,
    /// Nothing: disabled, or not Linux.
    #[display("off")]
    Nothing,
}

/// Restricts the calling thread, and all threads and processes that it starts afterwards. Call it
/// before the runtime is created.
///
/// # Errors
/// With [`SandboxMode::Required`], if not everything can be enforced; otherwise if the kernel rejects a
/// feature that it claims to support.
pub fn enter(mode: SandboxMode, allowed: &SandboxRules) -> anyhow::Result<SandboxStatus> {
    if mode == SandboxMode::Off {
        return Ok(SandboxStatus::Nothing);
    }
    let enforced = restrict(allowed)
        .context("cannot restrict the process; `[process] sandbox = \"off\"` disables this")?;
    anyhow::ensure!(
        mode == SandboxMode::Auto || enforced == SandboxStatus::Fully,
        "`process.sandbox` is `required`, but {enforced}; it requires Linux 6.12 or newer with Landlock; or use `auto`"
    );
    Ok(enforced)
}

#[cfg(not(target_os = "linux"))]
fn restrict(_: &SandboxRules) -> anyhow::Result<SandboxStatus> {
    Ok(SandboxStatus::Nothing)
}

#[cfg(target_os = "linux")]
fn restrict(allowed: &SandboxRules) -> anyhow::Result<SandboxStatus> {
    use landlock::{
        ABI, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd, Ruleset,
        RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
    };

    // The newest interface that the tests cover; older kernels enforce their part of it.
    const NEWEST_ABI: ABI = ABI::V6;
    let write = AccessFs::from_write(NEWEST_ABI);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(write | AccessFs::Execute)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?;
    let writable = allowed.writable.iter().cloned().chain([PathBuf::from("/dev/null")]);
    let executable = executables().into_iter();
    let paths =
        writable.map(|path| (path, write)).chain(executable.map(|path| (path, AccessFs::Execute.into())));
    for (path, access) in paths {
        // A missing path cannot be named, and will not be writable.
        let Ok(opened) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST_ABI) };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    for port in &allowed.ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    let status = rules.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => SandboxStatus::Fully,
        RulesetStatus::PartiallyEnforced => SandboxStatus::Partly,
        RulesetStatus::NotEnforced if status.no_new_privs => SandboxStatus::NoNewPrivileges,
        RulesetStatus::NotEnforced => SandboxStatus::Nothing,
    })
}

/// Maximum size of the list of mappings, in bytes.
#[cfg(target_os = "linux")]
const LONGEST_MAPS: u64 = 16 * 1024 * 1024;

/// This binary, which compiles plugins in a child process, and the files mapped into it, such as the
/// dynamic loader, which the kernel opens as an executable as well.
#[cfg(target_os = "linux")]
fn executables() -> Vec<PathBuf> {
    let maps =
        crate::files::read_text(std::path::Path::new("/proc/self/maps"), LONGEST_MAPS).unwrap_or_default();
    let mut paths: Vec<PathBuf> = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.contains('x')))
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .chain([PathBuf::from("/proc/self/exe")])
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::process::Command;

    use super::*;

    /// Runs a closure in its own thread, which alone is restricted.
    fn restricted(allowed: &SandboxRules, then: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| match enter(SandboxMode::Auto, allowed).expect("entered") {
                SandboxStatus::Fully => then(),
                enforced => eprintln!("skipped: {enforced}"),
            });
            thread.join().expect("the promises hold");
        });
    }

    #[test]
    fn only_allowed_paths_are_writable() {
        let (ours, other) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        fs::write(other.path().join("there"), "text").expect("written");
        let allowed = SandboxRules { writable: vec![ours.path().into(), "/not/there".into()], ports: vec![] };
        restricted(&allowed, || {
            let file = ours.path().join("file");
            fs::write(&file, "one").expect("written");
            fs::rename(&file, ours.path().join("renamed")).expect("renamed");
            fs::remove_file(ours.path().join("renamed")).expect("removed");
            fs::write("/dev/null", "nothing").expect("written");
            let there = other.path().join("there");
            assert_eq!(fs::read_to_string(&there).expect("reading is free"), "text");
            let denied = |result: std::io::Result<()>| result.expect_err("refused").kind();
            assert_eq!(denied(fs::write(other.path().join("new"), "")), ErrorKind::PermissionDenied);
            assert_eq!(denied(fs::write(&there, "")), ErrorKind::PermissionDenied);
            assert_eq!(denied(fs::remove_file(&there)), ErrorKind::PermissionDenied);
        });
        assert_eq!(fs::read_to_string(other.path().join("there")).expect("there"), "text");
    }

    #[test]
    fn only_the_admin_ports_are_listened_on() {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (port, connected_to) = (free.local_addr().expect("bound").port(), free);
        restricted(&SandboxRules::default(), || {
            let refused = TcpListener::bind("127.0.0.1:0").expect_err("refused");
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            std::net::TcpStream::connect(("127.0.0.1", port)).expect("calling out is free");
        });
        drop(connected_to);
        restricted(&SandboxRules { ports: vec![port], ..SandboxRules::default() }, || {
            TcpListener::bind(("127.0.0.1", port)).expect("named");
        });
    }

    #[test]
    fn only_this_binary_is_executed() {
        restricted(&SandboxRules::default(), || {
            let refused = Command::new("/bin/true").status().expect_err("refused");
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            let own = Command::new("/proc/self/exe").arg("--list").output().expect("this test binary");
            assert!(own.status.success(), "{own:?}");
        });
    }

    #[test]
    fn off_restricts_nothing_and_required_names_what_is_missing() {
        std::thread::spawn(|| {
            assert_eq!(
                enter(SandboxMode::Off, &SandboxRules::default()).expect("entered"),
                SandboxStatus::Nothing
            );
            TcpListener::bind("127.0.0.1:0").expect("as before");
            // Either result is possible, depending on the kernel.
            match enter(SandboxMode::Required, &SandboxRules::default()) {
                Ok(enforced) => assert_eq!(enforced, SandboxStatus::Fully),
                Err(error) => assert!(error.to_string().contains("`auto`"), "{error}"),
            }
        })
        .join()
        .expect("the promises hold");
    }
}
