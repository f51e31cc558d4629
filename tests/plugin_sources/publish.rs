//! Publishing, fetching and verifying plugins: what is published is what gateways accept, and what is
//! wrong with a registry, a login, a file or a signature is named.

use std::process::{Command, Output};

use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;

use crate::plugin_sources::hostile_registry::FakeSite;
use crate::plugin_sources::trust::{KeyPair, no_openssl};
use crate::plugin_sources::{put, variant};
use crate::steering::{failed, succeeded, text};
use crate::support::folder;
use crate::support::registry::Registry;

/// Runs `halley` with this login for registries.
fn halley(login: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
    command.args(args).env("DOCKER_AUTH_CONFIG", login).output().expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn published_plugins_are_fetched_verified_and_accepted() {
    let name = "published_plugins_are_fetched_verified_and_accepted";
    let Some(registry) = Registry::start(name, true).await else { return };
    if no_openssl(name) {
        return;
    }
    let (files, login) = (folder("publish"), registry.login());
    let (ops, stranger) = (KeyPair::new(files.path(), "ops"), KeyPair::new(files.path(), "stranger"));
    let file = files.path().join("p.wasm");
    put(&file, &variant(1));
    let place = format!("oci://{}/team/policy", registry.host());
    let (tagged, path, key) = (format!("{place}:1.0"), text(&file), text(&ops.public));

    // Signed while publishing; repeating it changes nothing.
    let private = text(&ops.private);
    let publish = ["plugin", "publish", &tagged, &path, "--key", &private, "--name", "p", "--number", "7"];
    let said = succeeded(&halley(&login, &publish));
    let reference = said.lines().next().expect("the reference").to_owned();
    assert!(reference.starts_with(&format!("{tagged}@sha256:")), "{said}");
    assert!(said.contains("signed as version 7 of `p`"), "{said}");
    assert_eq!(succeeded(&halley(&login, &publish)), said, "the same content has the same digest");
    the_manifest_says_what_it_is(&registry).await;

    // A gateway that requires signatures accepts exactly this reference.
    let config = files.path().join("halley.toml");
    let plugin = format!(
        "[policies]\ntrusted_keys = [\"{key}\"]\n[[plugin]]\nname = \"p\"\npath = \"{reference}\"\nconfig = {{ words = [\"x\"] }}\n"
    );
    put(&config, plugin.as_bytes());
    let checked = halley(&login, &["check", "--config", &text(&config)]);
    assert!(checked.status.success(), "{checked:?}");

    let verify = |what: &str, more: &[&str]| halley(&login, &[&["plugin", "verify", what], more].concat());
    assert!(succeeded(&verify(&tagged, &["--key", &key])).contains("signed as version 7 of `p`"));
    let (strangers, other) = (text(&stranger.public), ["--key", &*key, "--name", "q"]);
    assert!(failed(&verify(&tagged, &["--key", &strangers])).contains("none of the 1 keys of --key"));
    assert!(failed(&verify(&tagged, &other)).contains("is signed as `p`, and not for `q`"));

    // Fetched, it is the same file with its signature.
    let copy = files.path().join("copy.wasm");
    let fetch = ["plugin", "fetch", &tagged, "-o", &text(&copy)];
    let said = succeeded(&halley(&login, &fetch));
    assert!(said.starts_with(&reference) && said.contains("signed as version 7 of `p`"), "{said}");
    assert!(
        said.contains("settings, as its publisher states") && said.contains("What to look for."),
        "{said}"
    );
    assert_eq!(std::fs::read(&copy).expect("written"), variant(1));
    assert!(verify(&text(&copy), &["--key", &key]).status.success());

    // Without a signature, it is published with a warning, and not verified.
    let (unsigned, loose) = (format!("{place}:unsigned"), files.path().join("loose.wasm"));
    put(&loose, &variant(2));
    let output = halley(&login, &["plugin", "publish", &unsigned, &text(&loose)]);
    assert!(output.status.success() && stderr(&output).contains("warning: it is not signed"), "{output:?}");
    assert!(failed(&verify(&unsigned, &["--key", &key])).contains("is not signed"));
    // A signature that was left from another version goes.
    assert!(
        succeeded(&halley(&login, &["plugin", "fetch", &unsigned, "-o", &text(&copy)]))
            .contains("not signed")
    );
    assert!(!files.path().join("copy.wasm.sig").exists());

    // Content that somebody changed in the registry is not taken.
    std::fs::write(registry.blob_file(&variant(1)), variant(3)).expect("the registry's own file");
    let gone = files.path().join("gone.wasm");
    let why = failed(&halley(&login, &["plugin", "fetch", &tagged, "-o", &text(&gone)]));
    assert!(why.contains("igest") && !gone.exists(), "{why}");
    failed(&verify(&tagged, &["--key", &key]));
}

/// For version 7 of `p`.
async fn the_manifest_says_what_it_is(registry: &Registry) {
    let annotations = registry.manifest("team/policy", "1.0").await["annotations"].clone();
    for (name, value) in [
        ("org.opencontainers.image.title", "p"),
        ("org.opencontainers.image.version", "7"),
        ("halley.name", "p"),
        ("halley.version", "7"),
        ("halley.hooks", "filter,lifecycle"),
    ] {
        assert_eq!(annotations[name], value, "{annotations}");
    }
    let settings = annotations["halley.settings"].as_str().expect("the schema of the settings");
    let schema: serde_json::Value = serde_json::from_str(settings).expect("JSON");
    assert_eq!(schema["properties"]["words"]["description"], "What to look for.");
    assert!(annotations["halley.contract"].as_str().is_some_and(|contract| contract.starts_with("0.")));
}

#[tokio::test]
async fn what_cannot_be_published_is_named_before_and_after_asking() {
    let name = "what_cannot_be_published_is_named_before_and_after_asking";
    let Some(registry) = Registry::start(name, true).await else { return };
    if no_openssl(name) {
        return;
    }
    let files = folder("unpublished");
    let (file, tagged) = (files.path().join("p.wasm"), format!("oci://{}/team/policy:1", registry.host()));
    put(&file, &variant(1));
    let publish = |login: &str, reference: &str| {
        let output = halley(login, &["plugin", "publish", reference, &text(&file)]);
        assert!(!output.status.success(), "{output:?}");
        (output.status.code(), stderr(&output))
    };
    // Wrong credentials, and none.
    let wrong = registry.login().replace(registry.password(), "another-password");
    let (_, why) = publish(&wrong, &tagged);
    assert!(why.contains("asked with credentials") && why.contains("401"), "{why}");
    assert!(!why.contains("another-password"), "{why}");
    assert!(publish("{}", &tagged).1.contains("asked without credentials"));

    // References that are none, a signature of other content, and what is no plugin.
    let digest = format!("{tagged}@sha256:{}", "0".repeat(64));
    for (reference, expected) in [
        (tagged.replace(":1", ""), "neither a tag nor a digest"),
        (tagged.replace("oci://", ""), "not a reference into a registry"),
        (digest, "name a tag"),
    ] {
        let (code, why) = publish("{}", &reference);
        assert!(code == Some(2) && why.contains(expected), "{reference}: {why}");
    }
    KeyPair::new(files.path(), "ops").sign(&file);
    put(&file, &variant(2));
    let (code, why) = publish("{}", &tagged);
    assert!(code == Some(2) && why.contains("was changed after it was signed"), "{why}");
    std::fs::remove_file(files.path().join("p.wasm.sig")).expect("it is there");
    put(&file, b"hello");
    let (code, why) = publish("{}", &tagged);
    assert!(code == Some(1) && why.contains("nothing was published"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_that_refuse_get_neither_content_nor_credentials() {
    let files = folder("refusing");
    let file = files.path().join("p.wasm");
    put(&file, &variant(1));
    let publish = async |site: &FakeSite| {
        let (reference, file) = (format!("oci://{}/team/policy:1", site.name()), text(&file));
        let login = format!(
            "{{ \"auths\": {{ \"{}\": {{ \"username\": \"story\", \"password\": \"secret\" }} }} }}",
            site.name()
        );
        let run = move || halley(&login, &["plugin", "publish", &reference, &file]);
        failed(&tokio::task::spawn_blocking(run).await.expect("no panic"))
    };
    let denied = r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#;
    let site = FakeSite::new(move |_, path| match path {
        path if path.ends_with("/uploads/") => (StatusCode::FORBIDDEN, denied).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    })
    .await;
    let why = publish(&site).await;
    assert!(why.contains("cannot be published") && why.contains("403") && why.contains("read only"), "{why}");

    // An upload that leads to another site does not go there.
    let other = FakeSite::new(|_, _| StatusCode::CREATED.into_response()).await;
    let elsewhere = format!("http://{}/v2/team/policy/blobs/uploads/1", other.name());
    let site = FakeSite::new(move |_, path| match path {
        path if path.ends_with("/uploads/") => {
            (StatusCode::ACCEPTED, [(header::LOCATION, elsewhere.clone())]).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
    .await;
    let why = publish(&site).await;
    assert!(why.contains("redirects to another site"), "{why}");
    assert_eq!(other.seen(), [], "it was not contacted");

    // One that stores something else is found out.
    let site = FakeSite::new(|own, path| match path {
        path if path.ends_with("/uploads/") => {
            (StatusCode::ACCEPTED, [(header::LOCATION, format!("{own}/upload"))]).into_response()
        }
        path if path.starts_with("/upload") => StatusCode::CREATED.into_response(),
        path if path.contains("/manifests/") => {
            (StatusCode::CREATED, [("docker-content-digest", "sha256:0")]).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
    .await;
    let why = publish(&site).await;
    assert!(why.contains("the registry stored something else"), "{why}");
}
