//! Only trusted plugins decide: signed with keys that the `openssl` command created, or pinned.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::Engine as _;
use serde_json::json;

use crate::faults::world::World;
use crate::plugin_sources::{
    harmless, hash, put, sha256, variant, wait_for_hash, wait_for_refusal, with_plugin,
};
use crate::steering::{failed, halley, plugin, succeeded, text};
use crate::support::gateway::{Gateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::registry::Registry;
use crate::support::{folder, print_uncaptured};

/// A key pair, in two files.
pub(super) struct KeyPair {
    pub(super) private: PathBuf,
    pub(super) public: PathBuf,
}

impl KeyPair {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &text(&private)]);
        openssl(&["pkey", "-in", &text(&private), "-pubout", "-out", &text(&public)]);
        Self { private, public }
    }

    /// Signs a version of `p`, with an increasing number.
    pub(super) fn sign(&self, file: &Path) {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        self.sign_as(file, "p", NUMBER.fetch_add(1, Relaxed));
    }

    fn sign_as(&self, file: &Path, name: &str, number: u64) {
        let number = number.to_string();
        let sign = ["plugin", "sign", "--key", &text(&self.private), "--name", name, "--number", &number];
        succeeded(&halley(&[&sign[..], &[&text(file)]].concat()));
    }

    /// Signs the file alone, as older versions of Halley required.
    fn sign_bare(&self, file: &Path) {
        let (signature, temporary) = (signature_of(file), file.with_extension("newsig"));
        let sign = ["pkeyutl", "-sign", "-rawin", "-inkey", &text(&self.private)];
        openssl(&[&sign[..], &["-in", &text(file), "-out", &text(&temporary)]].concat());
        std::fs::rename(temporary, signature).expect("writable folder");
    }
}

fn signature_of(file: &Path) -> PathBuf {
    file.with_extension("wasm.sig")
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().expect("openssl was there");
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
}

pub(super) fn no_openssl(story: &str) -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !there {
        print_uncaptured(format_args!(
            "NOT PROVEN: `{story}` needs the `openssl` command; install the package openssl"
        ));
    }
    !there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_signed_plugins_are_activated_under_load() {
    if no_openssl("under_load_only_what_a_trusted_key_signed_comes_in_force") {
        return;
    }
    let files = folder("trust");
    let (ops, stranger) = (KeyPair::new(files.path(), "ops"), KeyPair::new(files.path(), "stranger"));
    let (file, pushed) = (files.path().join("p.wasm"), files.path().join("pushed.wasm"));
    put(&file, &variant(0));
    ops.sign(&file);
    let world = World::new("trust", 4, 2).await;
    let keys = format!("[{}]", quoted(&text(&ops.public)));
    let settings = with_plugin(world.gateway().await, &file).set("policies", "trusted_keys", keys).set(
        "policies",
        "state_dir",
        quoted(&text(&files.path().join("state"))),
    );
    let gateway = settings.clone().start().await;
    let push = || plugin(&gateway, &["push", "--name", "p", &text(&pushed)]);
    world
        .load_during(async {
            world.wait_for_work(20).await;
            // By file: a matching signature is required, and a change of the signature alone is
            // noticed.
            put(&file, &variant(1));
            wait_for_refusal(&gateway, "was changed after it was signed").await;
            assert_eq!(hash(&gateway).await, sha256(&variant(0)));
            stranger.sign(&file);
            world.wait_for_work(20).await;
            assert_eq!(hash(&gateway).await, sha256(&variant(0)), "another key's signature does not count");
            ops.sign(&file);
            wait_for_hash(&gateway, &sha256(&variant(1))).await;
            std::fs::remove_file(signature_of(&file)).expect("it is there");
            wait_for_refusal(&gateway, "is not signed").await;
            ops.sign(&file);

            // By push: unsigned, signed by a stranger, signed, tampered with.
            put(&pushed, &variant(2));
            let why = failed(&push());
            assert!(why.contains("is not signed") && why.contains("halley plugin sign"), "{why}");
            stranger.sign(&pushed);
            assert!(failed(&push()).contains("is signed by none of the 1 keys"));
            ops.sign(&pushed);
            succeeded(&push());
            assert_eq!(hash(&gateway).await, sha256(&variant(2)));
            put(&pushed, &variant(3));
            assert!(failed(&push()).contains("was changed after it was signed"));
            std::fs::write(signature_of(&pushed), "nonsense").expect("writable folder");
            assert!(failed(&push()).contains("is neither what `halley plugin sign` writes"));
            world.wait_for_work(20).await;
        })
        .await;
    assert_eq!(hash(&gateway).await, sha256(&variant(2)));
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();

    // A restart restores the signature of the pushed version.
    assert!(gateway.sigterm().await.success());
    let again = settings.start().await;
    assert_eq!(hash(&again).await, sha256(&variant(2)));
}

#[tokio::test]
async fn keys_are_rotated_while_the_gateway_runs() {
    if no_openssl("keys_are_rotated_while_the_gateway_runs") {
        return;
    }
    let files = folder("rotated");
    let (old, new) = (KeyPair::new(files.path(), "old"), KeyPair::new(files.path(), "new"));
    let (file, ring) = (files.path().join("p.wasm"), files.path().join("ring.pem"));
    let read = |key: &KeyPair| std::fs::read(&key.public).expect("openssl wrote it");
    put(&file, &variant(0));
    old.sign(&file);
    put(&ring, &read(&old));
    let topic = kafka().topic("rotated", 1).await;
    let settings = with_plugin(gateway(&topic), &file).set(
        "policies",
        "trusted_keys",
        format!("[{}]", quoted(&text(&ring))),
    );
    let gateway = settings.clone().start().await;

    put(&ring, &[read(&old), read(&new)].concat());
    put(&file, &variant(1));
    new.sign(&file);
    wait_for_hash(&gateway, &sha256(&variant(1))).await;
    put(&ring, &read(&old));
    wait_for_refusal(&gateway, "is signed by none of the 1 keys").await;
    assert_eq!(hash(&gateway).await, sha256(&variant(1)), "the active version stays");
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 200 && ready.body.contains("is signed by none"), "{ready:?}");
    let fresh = settings.clone().start_unready().await;
    assert_eq!(fresh.wait().await.code(), Some(1), "no gateway starts with it");

    old.sign(&file);
    eventually_calm(&gateway).await;
    std::fs::remove_file(&ring).expect("it is there");
    wait_for_refusal(&gateway, "cannot be read").await;
    put(&ring, &std::fs::read(&new.private).expect("openssl wrote it"));
    wait_for_refusal(&gateway, "holds a private key").await;
}

#[tokio::test]
async fn a_pinned_plugin_must_match_its_hash() {
    let files = folder("pinned");
    let file = files.path().join("p.wasm");
    put(&file, &variant(0));
    let topic = kafka().topic("pinned", 1).await;
    let pinned = |number: u8| {
        let plugin = harmless(&file).set("sha256", quoted(&sha256(&variant(number))));
        gateway(&topic).group("pinned").plugin(plugin)
    };
    let config = files.path().join("halley.toml");
    std::fs::write(&config, pinned(1).toml()).expect("writable folder");
    let checked = halley(&["check", "--config", &text(&config)]);
    let why = String::from_utf8_lossy(&checked.stderr).into_owned();
    let (found, wanted) = (sha256(&variant(0)), sha256(&variant(1)));
    assert_eq!(checked.status.code(), Some(2), "{why}");
    assert!(why.contains(&found) && why.contains(&wanted) && why.contains("change `sha256`"), "{why}");

    let gateway = pinned(0).start().await;
    put(&file, &variant(1));
    wait_for_refusal(&gateway, &format!("is pinned to {found}")).await;
    assert_eq!(hash(&gateway).await, found);
    let why = failed(&plugin(&gateway, &["push", &text(&file)]));
    assert!(why.contains(&found) && why.contains(&wanted), "{why}");
    gateway.configure(&pinned(1));
    wait_for_hash(&gateway, &wanted).await;
}

#[tokio::test]
async fn a_plugin_from_a_registry_is_signed_by_an_annotation() {
    let name = "a_plugin_from_a_registry_is_signed_by_an_annotation";
    if no_openssl(name) {
        return;
    }
    let Some(registry) = Registry::start(name, false).await else { return };
    let files = folder("annotated");
    let ops = KeyPair::new(files.path(), "ops");
    let file = files.path().join("p.wasm");
    put(&file, &variant(1));
    ops.sign(&file);
    let signature = std::fs::read(signature_of(&file)).expect("openssl wrote it");
    let signature = base64::engine::general_purpose::STANDARD.encode(signature);
    let signed = registry.push("signed", &variant(1), json!({ "halley.signature": signature })).await;
    let unsigned = registry.push("unsigned", &variant(1), json!({})).await;
    let other = registry.push("other", &variant(2), json!({ "halley.signature": signature })).await;

    let topic = kafka().topic("annotated", 1).await;
    let keys = format!("[{}]", quoted(&text(&ops.public)));
    let with =
        |reference: &str| with_plugin(gateway(&topic), reference).set("policies", "trusted_keys", &keys);
    let gateway = with(&signed).start().await;
    gateway.configure(&with(&unsigned));
    wait_for_refusal(&gateway, "is not signed").await;
    gateway.configure(&with(&other));
    wait_for_refusal(&gateway, "was changed after it was signed").await;
    assert_eq!(hash(&gateway).await, sha256(&variant(1)));
}

#[tokio::test]
async fn a_signature_binds_plugin_and_version() {
    if no_openssl("a_signed_version_is_one_plugins_and_does_not_come_back") {
        return;
    }
    let files = folder("numbers");
    let ops = KeyPair::new(files.path(), "ops");
    let file = files.path().join("p.wasm");
    let version = |number: u8| {
        put(&file, &variant(number));
        ops.sign_as(&file, "p", number.into());
    };
    let topic = kafka().topic("numbers", 1).await;
    let keyed = |settings: Gateway| {
        let state = files.path().join("state");
        settings.set("policies", "trusted_keys", format!("[{}]", quoted(&text(&ops.public)))).set(
            "policies",
            "state_dir",
            quoted(&text(&state)),
        )
    };
    let settings = keyed(gateway(&topic)).plugin(harmless(&file));
    version(1);
    let gateway = settings.clone().start().await;
    version(2);
    wait_for_hash(&gateway, &sha256(&variant(2))).await;

    // A signed older version is refused, also after a restart, which restores the active version.
    version(1);
    wait_for_refusal(&gateway, "is signed as version 1, and version 2 was active before").await;
    assert!(gateway.sigterm().await.success());
    let gateway = settings.clone().start().await;
    wait_for_refusal(&gateway, "halley plugin rollback p").await;
    assert_eq!(hash(&gateway).await, sha256(&variant(2)));
    assert!(failed(&plugin(&gateway, &["push", &text(&file)])).contains("is signed as version 1"));
    // An operator may, by a rollback or in the configuration.
    succeeded(&plugin(&gateway, &["rollback", "p"]));
    assert_eq!(hash(&gateway).await, sha256(&variant(1)));
    version(3);
    wait_for_hash(&gateway, &sha256(&variant(3))).await;
    let older = harmless(&file).set("allow_downgrade", "true");
    gateway.configure(&settings.clone().without_plugins().plugin(older));
    version(2);
    wait_for_hash(&gateway, &sha256(&variant(2))).await;

    // Signed for another plugin, and without a name.
    gateway.configure(&settings.clone());
    version(4);
    wait_for_hash(&gateway, &sha256(&variant(4))).await;
    put(&file, &variant(5));
    ops.sign_as(&file, "q", 5);
    wait_for_refusal(&gateway, "is signed as `q`, and not for `p`").await;
    ops.sign_bare(&file);
    wait_for_refusal(&gateway, "a signature of the file alone").await;
    assert_eq!(hash(&gateway).await, sha256(&variant(4)));
    // Where bare signatures are accepted, they have no number and rank below every number.
    assert!(gateway.sigterm().await.success());
    let gateway = settings.set("policies", "bare_signatures", "true").start().await;
    wait_for_refusal(&gateway, "has no signed number, and version 4 was active before").await;
    assert_eq!(hash(&gateway).await, sha256(&variant(4)));
}

#[tokio::test]
async fn a_candidate_is_pinned_like_its_plugin() {
    let files = folder("candidate");
    let (file, candidate) = (files.path().join("p.wasm"), files.path().join("candidate.wasm"));
    put(&file, &variant(0));
    put(&candidate, &variant(1));
    let topic = kafka().topic("candidate", 1).await;
    let checked = |pin: &str| {
        let rollout = format!("{{ path = {}, weight = \"50%\"{pin} }}", quoted(&text(&candidate)));
        let pinned = harmless(&file).set("sha256", quoted(&sha256(&variant(0)))).set("rollout", rollout);
        let config = files.path().join("halley.toml");
        std::fs::write(&config, gateway(&topic).plugin(pinned).toml()).expect("writable folder");
        let checked = halley(&["check", "--config", &text(&config)]);
        (checked.status.code(), String::from_utf8_lossy(&checked.stderr).into_owned())
    };
    let (code, why) = checked("");
    assert!(code == Some(2) && why.contains("give it `rollout.sha256`"), "{why}");
    let (code, why) = checked(&format!(", sha256 = {}", quoted(&sha256(&variant(2)))));
    assert!(code == Some(2) && why.contains("has a candidate") && why.contains("is pinned to"), "{why}");
    let (code, why) = checked(&format!(", sha256 = {}", quoted(&sha256(&variant(1)))));
    assert_eq!(code, Some(0), "{why}");
}

async fn eventually_calm(gateway: &crate::support::gateway::RunningGateway) {
    crate::support::eventually("no refusal", crate::support::PATIENCE, async || {
        gateway.get("/v1/plugins").await.json()["last_refusal"].is_null().then_some(())
    })
    .await;
}
