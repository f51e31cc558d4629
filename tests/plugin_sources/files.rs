//! Files that others may have created: pipes, devices, links, and directories of other users.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::plugin_sources::{harmless, hash, put, sha256, variant, wait_for_hash, wait_for_refusal};
use crate::steering::{halley, text};
use crate::support::child_process::ChildProcess;
use crate::support::gateway::{Gateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, folder, print_uncaptured, resident_kib, secret};

/// A user that is neither root nor the one who runs the tests.
const SOMEBODY: u32 = 4321;

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
}

fn replace_with_link(to: &str, path: &Path) {
    let _ = std::fs::remove_file(path);
    symlink(to, path).expect("writable folder");
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn check(folder: &Path, settings: &Gateway) -> Output {
    let config = folder.join("halley.toml");
    std::fs::write(&config, settings.toml()).expect("writable folder");
    halley(&["check", "--config", &text(&config)])
}

/// Starts a gateway that must refuse to start. Returns its output.
async fn refused_start(settings: &Gateway) -> String {
    let folder = folder("refused");
    let config = folder.path().join("halley.toml");
    std::fs::write(&config, settings.toml()).expect("writable folder");
    let args = ["run".to_owned(), "--config".to_owned(), text(&config)];
    let mut process =
        ChildProcess::start_with(env!("CARGO_BIN_EXE_halley"), &args, folder, &[]).expect("it starts");
    let status = process.wait(PATIENCE).await;
    assert!(status.is_some_and(|status| !status.success()), "{status:?}: {}", process.log());
    process.log()
}

#[tokio::test]
async fn pipes_and_devices_block_neither_watcher_nor_shutdown() {
    let files = folder("files");
    let (file, signature, key) =
        (files.path().join("p.wasm"), files.path().join("p.wasm.sig"), files.path().join("key.pem"));
    let stray = files.path().join("stray.wasm");
    put(&file, &variant(0));
    pipe(&stray);
    for name in [&b"junk.wasm"[..], b"my policy.wasm", b"\xff.wasm"] {
        std::fs::write(files.path().join(OsStr::from_bytes(name)), "hello").expect("writable folder");
    }
    let topic = kafka().topic("files", 1).await;
    let settings = gateway(&topic)
        .plugin(harmless(&file))
        .set("policies", "directory", quoted(&text(files.path())))
        .set("policies", "rescan_interval", quoted("200ms"));
    let gateway = settings.clone().start().await;
    let status = gateway.get("/v1/plugins").await.json();
    let reasons = status["left_out"].to_string();
    for reason in ["is not a file, but a pipe", "is not WebAssembly", "`name` must be"] {
        assert!(reasons.contains(reason), "{status}");
    }
    let warnings = gateway.get("/readyz").await.json()["warnings"].to_string();
    assert!(
        warnings.contains("is not WebAssembly") && warnings.contains("the file is skipped"),
        "{warnings}"
    );

    // The plugin itself becomes an endless device, and a pipe; then a file again.
    let before = resident_kib(gateway.pid());
    replace_with_link("/dev/zero", &file);
    wait_for_refusal(&gateway, "is not a file, but a device").await;
    replace_with_link(&text(&stray), &file);
    wait_for_refusal(&gateway, "is not a file, but a pipe").await;
    std::fs::remove_file(&file).expect("it is there");
    put(&file, &variant(1));
    wait_for_hash(&gateway, &sha256(&variant(1))).await;

    // So do its signature and the keys.
    pipe(&signature);
    std::fs::write(&key, "no key yet").expect("writable folder");
    let keys = format!("[{}]", quoted(&text(&key)));
    let keyed = settings.clone().set("policies", "trusted_keys", keys);
    let fresh = keyed.clone().start_unready().await;
    assert_eq!(fresh.wait().await.code(), Some(1), "it exits although the signature is a pipe");
    replace_with_link("/dev/zero", &key);
    let fresh = keyed.start_unready().await;
    assert_eq!(fresh.wait().await.code(), Some(1), "it exits although the key is endless");

    let grown = resident_kib(gateway.pid()).saturating_sub(before);
    assert!(grown < 256 * 1024, "{grown} KiB more");
    assert!(gateway.sigterm().await.success(), "nothing blocks the shutdown");
}

#[tokio::test]
async fn a_state_dir_writable_by_others_is_refused() {
    let files = folder("owned");
    let (file, state) = (files.path().join("p.wasm"), files.path().join("state"));
    put(&file, &variant(0));
    let topic = kafka().topic("owned", 1).await;
    let settings =
        gateway(&topic).plugin(harmless(&file)).set("policies", "state_dir", quoted(&text(&state)));
    std::fs::create_dir(&state).expect("writable folder");
    mode(&state, 0o777);
    let refused = async |remedy: &str| {
        let checked = check(files.path(), &settings);
        let why = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(2), "{why}");
        assert!(why.contains("state_dir") && why.contains(remedy), "{why}");
        let log = refused_start(&settings).await;
        assert!(log.contains("state_dir") && log.contains(remedy), "{log}");
        assert_eq!(std::fs::read_dir(&state).expect("readable").count(), 0, "nothing is written to it");
    };
    refused("chmod go-w").await;
    mode(&state, 0o755);
    if chown(&state, Some(SOMEBODY), None).is_err() {
        print_uncaptured(format_args!("NOT PROVEN: folders of other users need root"));
        return;
    }
    refused("chown 0").await;
    // The same for the parent directory: its owner can replace the directory below.
    chown(&state, Some(0), None).expect("root may");
    chown(files.path(), Some(SOMEBODY), None).expect("root may");
    refused("chown 0").await;
    chown(files.path(), Some(0), None).expect("root may");
    assert!(check(files.path(), &settings).status.success());
    let gateway = settings.start().await;
    assert_eq!(hash(&gateway).await, sha256(&variant(0)));
}

#[tokio::test]
async fn links_in_the_state_dir_are_not_followed() {
    let files = folder("links");
    let (file, state, precious) =
        (files.path().join("p.wasm"), files.path().join("state"), files.path().join("precious"));
    put(&file, &variant(0));
    std::fs::write(&precious, "precious").expect("writable folder");
    std::fs::create_dir_all(state.join("plugins")).expect("writable folder");
    let topic = kafka().topic("links", 1).await;
    let settings =
        gateway(&topic).plugin(harmless(&file)).set("policies", "state_dir", quoted(&text(&state)));
    symlink(&precious, state.join("lock")).expect("writable folder");
    assert!(refused_start(&settings).await.contains("cannot be locked"));
    std::fs::remove_file(state.join("lock")).expect("it is there");
    // The file to which earlier gateways followed a link, and the file that is written today.
    for name in ["p.tmp", "p.json"] {
        symlink(&precious, state.join("plugins").join(name)).expect("writable folder");
    }
    let gateway = settings.start().await;
    assert_eq!(hash(&gateway).await, sha256(&variant(0)));
    assert!(gateway.sigterm().await.success());
    assert_eq!(std::fs::read_to_string(&precious).expect("it is there"), "precious");
    let record = std::fs::symlink_metadata(state.join("plugins/p.json")).expect("it was written");
    assert!(record.is_file(), "the link was replaced by the record");
}

#[tokio::test]
async fn a_token_file_open_to_others_is_refused() {
    let files = folder("secret");
    let token = files.path().join("token");
    secret(&token, "0123456789abcdef-of-this-story");
    let topic = kafka().topic("secret", 1).await;
    let settings = gateway(&topic).set("admin", "token_file", quoted(&text(&token)));
    for (open, why) in [(0o666, "is writable by others"), (0o644, "is readable by all users")] {
        mode(&token, open);
        let checked = check(files.path(), &settings);
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(2), "{said}");
        assert!(said.contains(why) && said.contains("chmod 600"), "{said}");
        let log = refused_start(&settings).await;
        assert!(log.contains(why) && log.contains("chmod 600"), "{log}");
    }
    mode(&token, 0o640);
    assert!(check(files.path(), &settings).status.success());
    settings.start().await;
}
