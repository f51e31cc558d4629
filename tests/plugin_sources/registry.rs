//! Plugins from a real registry: fetched by digest, verified, cached, and retried while it is
//! unreachable.

use serde_json::json;

use crate::faults::world::World;
use crate::plugin_sources::{hash, sha256, variant, wait_for_hash, wait_for_refusal, with_plugin};
use crate::steering::{halley, plugin, succeeded, text};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::registry::Registry;
use crate::support::{folder, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_plugins_load_under_load_despite_outages() {
    let name = "under_load_plugins_come_from_a_registry_and_it_may_be_away";
    let Some(mut registry) = Registry::start(name, false).await else { return };
    let files = folder("oci");
    let [first, second, third] = [variant(1), variant(2), variant(3)];
    let mut references = Vec::new();
    for plugin in [&first, &second, &third] {
        references.push(registry.push("team/policy", plugin, json!({})).await);
    }
    let world = World::new("oci", 4, 2).await;
    let settings = world.gateway().await.set("policies", "rescan_interval", quoted("500ms")).set(
        "policies",
        "state_dir",
        quoted(&text(&files.path().join("state"))),
    );
    let with = |at: usize| with_plugin(settings.clone(), &references[at]);
    let gateway = with(0).start().await;
    world
        .load_during(async {
            assert_eq!(hash(&gateway).await, sha256(&first));
            gateway.configure(&with(1));
            wait_for_hash(&gateway, &sha256(&second)).await;
            world.wait_for_work(20).await;

            registry.stop();
            gateway.configure(&with(2));
            wait_for_refusal(&gateway, "cannot be fetched").await;
            assert_eq!(hash(&gateway).await, sha256(&second), "the active set stays");
            world.wait_for_work(20).await;
            // Fetched content needs no registry.
            succeeded(&plugin(&gateway, &["rollback", "p"]));
            assert_eq!(hash(&gateway).await, sha256(&first));
            succeeded(&plugin(&gateway, &["release", "p"]));
            assert_eq!(hash(&gateway).await, sha256(&second));
            registry.restart().await;
            wait_for_hash(&gateway, &sha256(&third)).await;
            world.wait_for_work(20).await;
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();

    assert!(gateway.sigterm().await.success());
    registry.stop();
    let again = with(2).start().await;
    assert_eq!(hash(&again).await, sha256(&third), "the state directory caches what was fetched");
    let status = again.get("/v1/plugins").await.json();
    assert!(status["last_refusal"].is_null(), "{status}");
}

#[tokio::test]
async fn registry_content_must_match_its_digest() {
    let name = "what_a_registry_gives_has_to_be_what_was_asked_for";
    let Some(registry) = Registry::start(name, false).await else { return };
    let check = |reference: &str| check(reference, &[]);
    let good = registry.push("policy", &variant(1), json!({})).await;
    let (code, said) = check(&good);
    assert_eq!(code, Some(0), "{said}");

    let tag = format!("{}:latest", good.split('@').next().unwrap_or_default());
    let unknown = format!("{}@sha256:{}", good.split('@').next().unwrap_or_default(), "0".repeat(64));
    let away =
        good.replace(good.split('/').nth(2).unwrap_or_default(), &format!("127.0.0.1:{}", free_port()));
    let tampered = registry.push("tampered", &variant(2), json!({})).await;
    std::fs::write(registry.blob_file(&variant(2)), variant(3)).expect("the registry's own file");
    for (reference, why) in [
        (&*tag, "names a tag"),
        (&*unknown, "cannot be fetched"),
        (&*away, "cannot be fetched"),
        (&*tampered, "igest"),
    ] {
        let (code, said) = check(reference);
        assert!(code == Some(2) && said.contains(why), "{reference}: {said}");
    }
    let (code, said) = check(&registry.push("text", b"hello", json!({})).await);
    assert!(code == Some(2) && said.contains("is not WebAssembly"), "{said}");
}

#[tokio::test]
async fn registry_credentials_are_used_and_never_logged() {
    let name = "credentials_are_asked_for_and_never_told";
    let Some(registry) = Registry::start(name, true).await else { return };
    let reference = registry.push("private/policy", &variant(1), json!({})).await;
    let (code, said) = check(&reference, &[("DOCKER_AUTH_CONFIG", "{}")]);
    assert!(code == Some(2) && said.contains("without credentials"), "{said}");
    let wrong = registry.login().replace(registry.password(), "another-password");
    let (code, said) = check(&reference, &[("DOCKER_AUTH_CONFIG", &wrong)]);
    assert!(code == Some(2) && !said.contains("another-password"), "{said}");

    let topic = kafka().topic("private", 1).await;
    let home = folder("docker");
    std::fs::write(home.path().join("config.json"), registry.login()).expect("writable folder");
    let settings = with_plugin(gateway(&topic), &reference);
    let settings = settings.environment("DOCKER_CONFIG", &home.path().display().to_string());
    let gateway = settings.set("log", "level", quoted("debug")).start().await;
    assert_eq!(hash(&gateway).await, sha256(&variant(1)));
    assert!(!format!("{:?}", gateway.log_lines()).contains(registry.password()));
}

#[tokio::test]
async fn a_credential_helper_is_asked_and_one_that_hangs_is_left() {
    let name = "a_credential_helper_is_asked_and_one_that_hangs_is_left";
    let Some(registry) = Registry::start(name, true).await else { return };
    let reference = registry.push("kept/policy", &variant(1), json!({})).await;
    let home = folder("helpers");
    let answer = json!({ "Username": registry.user(), "Secret": registry.password() });
    let scripts = [("good", format!("cat >/dev/null; echo '{answer}'")), ("hangs", "sleep 600".to_owned())];
    for (name, script) in &scripts {
        let file = home.path().join(format!("docker-credential-{name}"));
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("writable folder");
        let may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, may_run).expect("its mode can be set");
    }
    let path = format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap_or_default());
    let with = |helper: &str| {
        let config = json!({ "credsStore": helper }).to_string();
        check(&reference, &[("PATH", &path), ("DOCKER_AUTH_CONFIG", &config)])
    };
    let (code, said) = with("good");
    assert!(code == Some(0), "{said}");
    let (code, said) = with("hangs");
    assert!(code == Some(2) && said.contains("`hangs`") && said.contains("no answer within 10s"), "{said}");
    let (code, said) = with("missing");
    assert!(code == Some(2) && said.contains("cannot be started"), "{said}");
}

/// What `halley check` says of a plugin from this reference.
fn check(reference: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let files = folder("check");
    let config = files.path().join("halley.toml");
    let text_of =
        format!("[[plugin]]\nname = \"p\"\npath = \"{reference}\"\nconfig = {{ words = [\"x\"] }}\n");
    std::fs::write(&config, text_of).expect("writable folder");
    let args = ["check", "--config", &text(&config)];
    if environment.is_empty() {
        let output = halley(&args);
        return (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
    let output = command.args(args).envs(environment.iter().copied()).output().expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
