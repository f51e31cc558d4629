//! Files of the plugin directory that cannot be loaded.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use super::swaps::write_variant;
use super::*;
use crate::policy::{Generation, PluginState, PoliciesConfig, Status, expand};

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_files_are_skipped_unless_active() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_variant(&path("p.wasm"), 0);
    mkfifo(&path("pipe.wasm"));
    symlink("nowhere", path("dangling.wasm")).unwrap();
    symlink("/dev/zero", path("endless.wasm")).unwrap();
    std::fs::File::create(path("huge.wasm")).unwrap().set_len(1 << 40).unwrap();
    let config = PoliciesConfig { directory: Some(folder.path().to_owned()), ..Default::default() };
    let wanted = || expand(&[], &config).unwrap();

    let engine = Engine::new();
    let policies = engine.policies(&wanted());
    let status = policies.status();
    assert_eq!(status.plugins.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>(), ["p"]);
    let left_out: Vec<&str> = status.left_out.iter().map(|stray| stray.plugin.as_str()).collect();
    assert_eq!(left_out, ["dangling", "endless", "huge", "pipe"]);
    let warnings = status.warnings();
    assert_eq!(warnings.len(), 4);
    assert!(
        warnings[3].contains("is not a file, but a pipe") && warnings[3].ends_with("; the file is skipped")
    );

    // A set is swapped next to them.
    write_variant(&path("p.wasm"), 1);
    assert_eq!(policies.replace(wanted()).await.unwrap(), Generation(2));
    assert_eq!(policies.status().left_out.len(), 4);

    // An active plugin is not skipped: no message passes without it.
    std::fs::remove_file(path("p.wasm")).unwrap();
    mkfifo(&path("p.wasm"));
    let refused = policies.replace(wanted()).await.unwrap_err();
    assert!(
        refused.to_string().contains("plugin `p`") && refused.to_string().contains("a pipe"),
        "{refused}"
    );
    assert_eq!(policies.status().plugins[0].state, PluginState::UpdateRefused);

    // A file that has become readable decides, too.
    std::fs::remove_file(path("p.wasm")).unwrap();
    std::fs::remove_file(path("pipe.wasm")).unwrap();
    write_variant(&path("p.wasm"), 1);
    write_variant(&path("pipe.wasm"), 2);
    assert_eq!(policies.replace(wanted()).await.unwrap(), Generation(3));
    let status = policies.status();
    assert_eq!((status.plugins.len(), status.left_out.len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_plugin_is_left_out_unless_it_decides_already() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_variant(&path("p.wasm"), 0);
    let whole = std::fs::read(path("p.wasm")).unwrap();
    std::fs::write(path("empty.wasm"), b"").unwrap();
    std::fs::write(path("half.wasm"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(path("junk.wasm"), b"hello").unwrap();
    std::fs::copy(guest("old"), path("old.wasm")).unwrap();
    for name in [&b"my policy.wasm"[..], b"a\nb.wasm", b"\xff.wasm", &[&[b'n'; 70][..], b".wasm"].concat()] {
        std::fs::write(path("x").with_file_name(OsStr::from_bytes(name)), &whole).unwrap();
    }
    // A name that is taken is the configured one's.
    std::fs::write(path("named.wasm"), &whole).unwrap();
    let config = PoliciesConfig { directory: Some(folder.path().to_owned()), ..Default::default() };
    let wanted = || expand(&[unruly("named")], &config).unwrap();

    let engine = Engine::new();
    let policies = engine.policies(&wanted());
    let status = policies.status();
    let names = |status: &Status| status.plugins.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&status), ["named", "p"]);
    let shown = serde_json::to_value(&status).unwrap()["left_out"].as_array().unwrap().len();
    assert_eq!((status.left_out.len(), shown), (9, 9), "also a path that is no text: {:#?}", status.left_out);
    assert_eq!(status.warnings().len(), 9);

    // They do not block the other plugins, and decide once they can be loaded.
    write_variant(&path("p.wasm"), 1);
    std::fs::write(path("junk.wasm"), &whole).unwrap();
    assert_eq!(policies.replace(wanted()).await.unwrap(), Generation(2));
    assert_eq!(names(&policies.status()), ["named", "junk", "p"]);

    // An active plugin is not skipped: its last good version stays active.
    std::fs::write(path("junk.wasm"), b"hello").unwrap();
    let refused = policies.replace(wanted()).await.unwrap_err();
    assert!(refused.to_string().contains("plugin `junk`"), "{refused}");
    assert_eq!(names(&policies.status()), ["named", "junk", "p"]);
}

#[test]
fn a_configured_file_must_be_readable() {
    let folder = tempfile::tempdir().unwrap();
    mkfifo(&folder.path().join("pipe.wasm"));
    let named = [PluginConfig::new("pipe", folder.path().join("pipe.wasm"))];
    let config = PoliciesConfig { directory: Some(folder.path().to_owned()), ..Default::default() };
    let problems = Engine::new().refusal(&expand(&named, &config).unwrap());
    assert!(problems[0].contains("is not a file, but a pipe; `path` must name"), "{problems:?}");
    std::fs::write(folder.path().join("junk.wasm"), b"hello").unwrap();
    let named = [PluginConfig::new("junk", folder.path().join("junk.wasm"))];
    let problems = Engine::new().refusal(&expand(&named, &config).unwrap());
    assert!(problems[0].contains("is not WebAssembly"), "{problems:?}");
}

#[test]
fn live_chains_are_counted() {
    let engine = Engine::new();
    let policies = engine.policies(&[unruly("p")]);
    let set = policies.current();
    let chains = [set.chain(), set.chain()];
    assert_eq!(policies.chains.load(Relaxed), 2);
    drop(chains);
    assert_eq!(policies.chains.load(Relaxed), 0);
}
