//! The units of systemd and the Debian package. Neither is installed here: `systemd-analyze` reads the units, and the
//! package's script runs with stand-ins for the tools that change the system.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::access::calls;
use super::{below, check, deployed, read};
use crate::support::{folder, print_uncaptured, repository};

const UNITS: [&str; 2] = ["halley", "halley-archive"];

/// The unit of this name.
fn unit(name: &str) -> String {
    read(&deployed(&format!("systemd/{name}.service")))
}

/// The first value of a key in a unit.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")))
}

#[test]
fn units_run_what_exists_and_have_time_to_stop() {
    let (gateway, archiver) = (unit("halley"), unit("halley-archive"));
    assert_eq!((value(&gateway, "Type"), value(&archiver, "Type")), (Some("notify"), Some("exec")));
    assert_eq!(value(&gateway, "MemoryDenyWriteExecute"), None, "compiling plugins needs it");
    assert_eq!(value(&archiver, "MemoryDenyWriteExecute"), Some("yes"));
    for unit in [&gateway, &archiver] {
        let stop =
            humantime::parse_duration(value(unit, "TimeoutStopSec").expect("a limit")).expect("a duration");
        let grace = halley::config::Config::default().delivery.shutdown_grace;
        assert!(
            stop >= grace + std::time::Duration::from_secs(10),
            "leaving Kafka can take 10 s after the grace period"
        );
        let command = value(unit, "ExecStart").expect("a command");
        let words = command.strip_prefix("/usr/bin/halley ").expect("the package's binary");
        assert!(words.contains(" --config /etc/halley/halley.toml"), "{words}");
        let subcommand = words.split(' ').next().expect("a command");
        let help = super::halley(&[subcommand, "--help"]);
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for option in words.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "halley {subcommand} has no {option}");
        }
        assert!(unit.contains("EnvironmentFile=-/etc/halley/halley.env\n"));
        assert!(unit.contains("\n#MemoryMax="), "memory_limit = \"auto\" is none without it");
    }
    let secrets = "EnvironmentFile=-/etc/halley/halley-archive.env";
    assert!(archiver.contains(secrets) && !gateway.contains(secrets), "gateways need no database");
}

#[test]
fn systemd_accepts_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return print_uncaptured("NOT PROVEN: `systemd_accepts_the_units` needs systemd-analyze");
    }
    for name in UNITS {
        let folder = folder("unit");
        let file = folder.path().join(format!("{name}.service"));
        std::fs::write(&file, unit(name).replace("/usr/bin/halley", env!("CARGO_BIN_EXE_halley")))
            .expect("written");
        let verified =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().expect("runs");
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let about: Vec<_> = said.lines().filter(|line| line.contains("halley")).collect();
        assert!(about.is_empty(), "{said}");
    }
}

#[test]
fn the_package_has_what_it_names() {
    let manifest: toml::Table = toml::from_str(&read(&repository("Cargo.toml"))).expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    let script = read(&deployed("systemd/package.sh"));
    let mut installed = BTreeSet::new();
    for asset in deb["assets"].as_array().expect("assets") {
        let part = |at: usize| asset[at].as_str().expect("text");
        let (source, target) = (part(0), part(1));
        installed.insert(if target.ends_with('/') {
            format!("{target}{}", source.rsplit('/').next().unwrap_or_default())
        } else {
            target.to_owned()
        });
        if let Some(made) = source.strip_prefix("target/deb/") {
            let folder = made.split('/').next().unwrap_or_default();
            assert!(script.contains(&format!("$made/{folder}")), "package.sh does not make {source}");
        } else if !source.starts_with("target/release/") {
            let exists = match source.split_once('*') {
                Some((folder, end)) => below(&repository(folder)).iter().any(|file| file.ends_with(end)),
                None => repository(source).exists(),
            };
            assert!(exists, "{source} is missing");
        }
    }
    for file in deb["conf-files"].as_array().expect("files") {
        let file = file.as_str().expect("a path").trim_start_matches('/');
        assert!(installed.contains(file), "{file} is not installed");
    }
    let installed_units: Vec<_> = deb["systemd-units"]
        .as_array()
        .expect("units")
        .iter()
        .map(|unit| {
            let of = |key: &str| unit[key].as_str().expect("text");
            assert!(unit["enable"].as_bool() == Some(false) && unit["start"].as_bool() == Some(false));
            assert!(repository(of("unit-scripts")).join(format!("{}.service", of("unit-name"))).exists());
            of("unit-name")
        })
        .collect();
    assert_eq!(installed_units, UNITS);
    for script in ["systemd/package.sh", "systemd/debian/postinst", "kafka/topics.sh", "kafka/acls.sh"] {
        let parsed = Command::new("sh").arg("-n").arg(deployed(script)).status();
        assert!(parsed.is_ok_and(|status| status.success()), "{script}");
    }
    // The same check is shown in both places: a plain one would know nothing of the service's environment.
    let words = |text: &str| {
        let lines = text.lines().map(|line| line.trim_start_matches(['#', ' ']).trim_end_matches('\\'));
        lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
    };
    let (page, config) =
        (words(&read(&deployed("README.md"))), words(&read(&deployed("systemd/halley.toml"))));
    let (_, shown) = config.split_once("systemd-run ").expect("a command");
    let (shown, _) = shown.split_once(" --connect").expect("a command");
    assert!(page.contains(shown) && shown.contains("EnvironmentFile=-/etc/halley/halley.env"), "{shown}");
    // The service's folders exist only where it is installed.
    let config = read(&deployed("systemd/halley.toml"));
    let lines: Vec<&str> =
        config.lines().filter(|line| !line.starts_with("state_dir") && !line.starts_with("socket")).collect();
    check(&lines.join("\n"));
}

/// The calls of the package's script on a system with this root, with or without an administrator's own mode.
fn configured(root: &Path, has_own_mode: bool) -> Vec<Vec<String>> {
    let tools = [
        // 2: there is no such user.
        ("getent", 2),
        ("adduser", 0),
        ("chown", 0),
        ("chmod", 0),
        ("dpkg-statoverride", i32::from(!has_own_mode)),
    ];
    let root = root.display().to_string();
    calls("systemd/debian/postinst", &tools, &["configure"], &[("DPKG_ROOT", &root)])
}

#[test]
fn only_the_service_reads_the_configuration() {
    let manifest: toml::Table = toml::from_str(&read(&repository("Cargo.toml"))).expect("TOML");
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().expect("assets");
    let config = assets.iter().find(|asset| asset[1].as_str() == Some("etc/halley/halley.toml"));
    assert_eq!(config.and_then(|asset| asset[2].as_str()), Some("640"), "until the script has run as well");
    let user = value(&unit("halley"), "User").expect("a user").to_owned();
    assert_eq!(value(&unit("halley-archive"), "User"), Some(&*user));
    let root = folder("root");
    let changes = |calls: &[Vec<String>]| {
        let all = calls.iter().filter(|words| words[0] == "chmod" || words[0] == "chown").cloned();
        all.map(|words| words.join(" ")).collect::<Vec<_>>()
    };
    let without = configured(root.path(), false);
    assert_eq!(changes(&without), [""; 0], "an administrator has removed it");
    assert!(without.iter().any(|words| words[0] == "adduser" && words.last() == Some(&user)), "{without:?}");
    let file = root.path().join("etc/halley/halley.toml");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    std::fs::write(&file, "").expect("written");
    let file = file.display();
    let expected = [format!("chown root:{user} {file}"), format!("chmod 640 {file}")];
    assert_eq!(changes(&configured(root.path(), false)), expected);
    assert_eq!(changes(&configured(root.path(), true)), [""; 0], "the administrator's mode stays");
    assert!(read(&deployed("systemd/debian/postinst")).contains("#DEBHELPER#"));
}
