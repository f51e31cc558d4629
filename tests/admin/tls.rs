//! TLS of the admin listener: who gets past the handshake, what a certificate does not replace, and
//! files that change while the gateway runs.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::certificates::{Certificate, EXPIRED, LONG, VALID};
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually, eventually_eq, folder, free_port, http, repository, secret};

const TOKEN: &str = "operators-0123456789";

/// A gateway that shows a certificate of `ca.pem`, and wants one of `clients.pem`.
struct World {
    clients: Certificate,
    authority: Certificate,
    files: tempfile::TempDir,
    port: u16,
}

impl World {
    fn new() -> Self {
        let authority = Certificate::authority("servers");
        let world = Self {
            clients: Certificate::authority("operators"),
            authority,
            files: folder("admin-tls"),
            port: free_port(),
        };
        let at = world.files.path();
        world.authority.write(at, "ca");
        world.authority.issue("localhost", LONG).write(at, "own");
        world.clients.write(at, "clients");
        world.clients.issue("alice", VALID).write(at, "alice");
        world.clients.issue("bob", EXPIRED).write(at, "bob");
        Certificate::authority("somebody else").issue("mallory", VALID).write(at, "mallory");
        secret(&at.join("token"), TOKEN);
        world
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    async fn settings(&self, story: &str) -> Gateway {
        let file = |name: &str| quoted(&self.path(name));
        gateway(&kafka().topic(story, 1).await)
            .set("admin", "listen", quoted(&format!("127.0.0.1:{}", self.port)))
            .set("admin", "token_file", file("token"))
            .set("admin.tls", "certificate", file("own.pem"))
            .set("admin.tls", "key", file("own.key"))
            .set("admin.tls", "client_ca", file("clients.pem"))
    }

    /// The exit code and the outputs of `halley plugin status` at this host, with the certificate of
    /// this client.
    fn status(&self, host: &str, ca: &str, client: Option<&str>, token: bool) -> (Option<i32>, String) {
        let gateway = format!("https://{host}:{}", self.port);
        let mut args = vec!["plugin".into(), "status".into(), "--gateway".into(), gateway];
        args.extend(["--ca".into(), self.path(ca)]);
        if let Some(client) = client {
            let (cert, key) = (self.path(&format!("{client}.pem")), self.path(&format!("{client}.key")));
            args.extend(["--cert".into(), cert, "--key".into(), key]);
        }
        if token {
            args.extend(["--token-file".into(), self.path("token")]);
        }
        halley(&args)
    }
}

fn halley(args: &[String]) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_halley")).args(args).output().expect("it runs");
    let said = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// The warnings of readiness, over the Unix socket.
async fn warnings(gateway: &RunningGateway) -> String {
    gateway.operate("GET", "/readyz", &[], b"").await.json()["warnings"].to_string()
}

async fn until_ready(gateway: &RunningGateway) {
    gateway.wait_for_log("admin is listening on a unix socket").await;
    let is_ready = async || (gateway.operate("GET", "/readyz", &[], b"").await.status == 200).then_some(());
    eventually("the gateway to be ready", PATIENCE, is_ready).await;
}

#[tokio::test]
async fn only_certified_clients_pass_and_still_need_a_token() {
    let world = World::new();
    let gateway = world.settings("admin-tls").await.start_unready().await;
    until_ready(&gateway).await;
    let (code, said) = world.status("localhost", "ca.pem", Some("alice"), true);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = world.status("localhost", "ca.pem", Some("alice"), false);
    assert!(code == Some(1) && said.contains("reads require a token"), "{said}");
    for (host, ca, client, expected) in [
        ("localhost", "ca.pem", None, "certificate required"),
        ("localhost", "ca.pem", Some("bob"), "certificate expired"),
        ("localhost", "ca.pem", Some("mallory"), "unknown ca"),
        ("localhost", "clients.pem", Some("alice"), "certificate verify failed"),
        ("127.0.0.1", "ca.pem", Some("alice"), "IP address mismatch"),
    ] {
        let (code, said) = world.status(host, ca, client, true);
        let is_told = said.contains(expected) && said.contains("check also `--ca`, `--cert` and `--key`");
        assert!(code == Some(1) && is_told, "{host} {ca} {client:?}: {said}");
    }
    let plain = http::get(gateway.admin(), "/healthz").await;
    assert!(plain.is_err(), "no answer in the clear: {plain:?}");
    let refused = async || {
        let metrics = gateway.operate("GET", "/metrics", &[], b"").await.body;
        let series = r#"halley_admin_refused_total{reason="tls"} "#;
        metrics.lines().find_map(|line| line.strip_prefix(series)).map(str::to_owned)
    };
    eventually_eq("refused handshakes", Some("6".to_owned()), refused).await;
    let log = format!("{gateway:?}");
    assert!(log.contains("the client shows no certificate; `[admin.tls] client_ca` requires one"), "{log}");

    // Health checks of this machine take the Unix socket, which needs no certificate.
    let file = gateway.file().display().to_string();
    let (code, said) = halley(&["health".into(), "--config".into(), file.clone()]);
    assert_eq!((code, said.trim()), (Some(0), "ready"));
    // A second gateway's `check` recognizes the first one by its certificate.
    let (_, said) = halley(&["check".into(), "--connect".into(), "--config".into(), file]);
    assert!(said.contains("a gateway already listens there"), "{said}");
}

#[tokio::test]
async fn a_write_is_logged_with_the_names_in_the_certificate() {
    let world = World::new();
    // A client that gets such a certificate signed does not forge a line, or a second name.
    let forged = "carol, URI:spiffe://example.org/admin\nINFO audit: a write";
    for (file, name) in [("carol", forged), ("dave", &*"d".repeat(64))] {
        world.clients.issue(name, VALID).write(world.files.path(), file);
    }
    let settings = world.settings("admin-tls-audit").await;
    let policy =
        Plugin::new("p", repository("plugins/dist/comet_drain.wasm")).config(&json!({ "draining": [] }));
    let gateway = settings.plugin(policy).start_unready().await;
    until_ready(&gateway).await;
    let release = |client: &str| {
        let gateway = format!("https://localhost:{}", world.port);
        let [ca, token] = ["ca.pem", "token"].map(|name| world.path(name));
        let [cert, key] = ["pem", "key"].map(|kind| world.path(&format!("{client}.{kind}")));
        let args = ["plugin", "release", "p", "--gateway", &gateway, "--ca", &ca, "--token-file", &token];
        let all = args.into_iter().chain(["--cert", &*cert, "--key", &*key]);
        halley(&all.map(str::to_owned).collect::<Vec<_>>())
    };
    for client in ["alice", "carol", "dave"] {
        let (code, said) = release(client);
        assert_eq!(code, Some(0), "{said}");
    }
    // The operator on the socket has no certificate.
    assert_eq!(gateway.operate("POST", "/v1/plugins/p/release", &[], b"").await.status, 200);
    let audited = || {
        let lines = gateway.log_lines().into_iter().filter(|line| line["message"] == "audit: a write");
        lines.map(|line| line["certificate"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let all = async || Some(audited()).filter(|audited| audited.len() == 4);
    let named = eventually("the audit lines", PATIENCE, all).await;
    let dave = "d".repeat(64);
    assert_eq!(named[0].as_deref(), Some("CN=alice, DNS:alice"));
    let carol = named[1].as_deref().expect("a certificate");
    assert!(
        carol.starts_with(r#"CN="carol, URI:spiffe://example.org/admin\nINFO audit: a write", DNS:""#),
        "{carol}"
    );
    assert_eq!(named[2], Some(format!("CN={dave}, DNS:{dave}")));
    assert_eq!(named[3], None);
}

#[tokio::test]
async fn authorities_and_certificates_are_replaced_while_it_runs() {
    let world = World::new();
    let gateway = world.settings("admin-tls-rotated").await.start_unready().await;
    until_ready(&gateway).await;
    let passes = |client: &str| world.status("localhost", "ca.pem", Some(client), true).0 == Some(0);
    assert!(passes("alice"));

    let others = Certificate::authority("other operators");
    others.issue("carol", VALID).write(world.files.path(), "carol");
    others.write(world.files.path(), "clients");
    eventually("the new authority to count", PATIENCE, async || passes("carol").then_some(())).await;
    assert!(!passes("alice"), "the old one does not count");

    // What cannot be used is a warning, and changes nothing.
    let write = |name: &str, text: &str| replace(&world.files.path().join(name), text);
    write("clients.pem", "no certificate");
    eventually("a warning", PATIENCE, async || {
        warnings(&gateway).await.contains("`client_ca` has no certificate").then_some(())
    })
    .await;
    assert!(passes("carol"));
    others.write(world.files.path(), "clients");

    // An expired certificate is a warning as well: clients refuse it.
    world.authority.issue("localhost", EXPIRED).write(world.files.path(), "own");
    eventually("a warning", PATIENCE, async || {
        warnings(&gateway).await.contains("the certificate of `[admin.tls]`: expired at").then_some(())
    })
    .await;
    let (_, said) = world.status("localhost", "ca.pem", Some("carol"), true);
    assert!(said.contains("certificate has expired"), "{said}");
    assert!(
        gateway.wait_for_log_that("the certificate of `[admin.tls]`: expired at").await.ends_with("renew it")
    );
    world.authority.issue("localhost", LONG).write(world.files.path(), "own");
    eventually("the new certificate", PATIENCE, async || passes("carol").then_some(())).await;
    let is_clear = async || (!warnings(&gateway).await.contains("[admin.tls]")).then_some(());
    eventually("no warning", PATIENCE, is_clear).await;
}

/// Replaces a file in one step.
fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).expect("written");
    std::fs::rename(&aside, path).expect("renamed");
}
