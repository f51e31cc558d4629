//! Tokens and TLS of the API.

use std::path::Path;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use serde_json::json;

use super::{api_of, call, with_api};
use crate::support::certificates::{Certificate, EXPIRED, LONG, VALID};
use crate::support::gateway::quoted;
use crate::support::http::{Answer, send};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, folder, secret};

const TOKENS: &str = r#"
    [[token]]
    name = "comets"
    token = "comets-0123456789"
    [[token]]
    name = "support"
    token = "support-0123456789"
    read_only = true
    users = ["eu-"]
"#;

#[tokio::test]
async fn a_token_may_be_limited_to_reading_and_to_users() {
    let (redis, files) = (Redis::start().await, folder("api"));
    let file = files.path().join("tokens.toml");
    secret(&file, TOKENS);
    let (_, settings) = with_api("inbox-tokens", &redis).await;
    let gateway = settings.set("api", "token_file", quoted(&file.display().to_string())).start().await;
    let api = api_of(&gateway).await;
    let with = async |method: &str, path: &str, token: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        send(&api, method, path, &headers, b"{}").await.expect("an answer")
    };
    assert_eq!(call(&api, "GET", "/v1/inbox/eu-ann", None).await.status, 401);
    for (method, path, token, status, said) in [
        ("GET", "/v1/inbox/eu-ann", "comets-0123456789", 200, ""),
        ("DELETE", "/v1/inbox/eu-ann", "comets-0123456789", 200, ""),
        ("GET", "/v1/inbox/eu-ann", "support-0123456789", 200, ""),
        ("GET", "/v1/inbox/us-bob", "support-0123456789", 403, "limited to other users"),
        ("DELETE", "/v1/inbox/eu-ann", "support-0123456789", 403, "read-only"),
        ("POST", "/v1/inbox/eu-ann/replay", "support-0123456789", 403, "read-only"),
        ("GET", "/v1/inbox/eu-ann", "nonsense-0123456789", 401, "does not match"),
    ] {
        let answer: Answer = with(method, path, token).await;
        assert!(answer.status == status && answer.body.contains(said), "{method} {path} {token}: {answer:?}");
    }
    let browser = [("origin", "https://evil.example"), ("authorization", "Bearer comets-0123456789")];
    let answer = send(&api, "GET", "/v1/inbox/eu-ann", &browser, b"").await.expect("an answer");
    assert_eq!(answer.status, 403, "{answer:?}");
    let wrong = r#"halley_api_refused_total{reason="wrong_token"}"#;
    assert_eq!(gateway.metric(wrong).await, Some(1.0));

    // A new token is known without a restart; a mistake in the file keeps those that were read.
    secret(&file, &TOKENS.replace("comets-0123456789", "comets-9876543210"));
    // Few failures: a client that fails often is refused for a while.
    let is_renewed =
        async || (with("GET", "/v1/inbox/x", "comets-0123456789").await.status == 401).then_some(());
    eventually("the old token not to count", PATIENCE, is_renewed).await;
    assert_eq!(with("GET", "/v1/inbox/x", "comets-9876543210").await.status, 200);
    secret(&file, "[[token]]");
    let is_told = async || {
        assert_eq!(with("GET", "/v1/inbox/x", "comets-9876543210").await.status, 200);
        let told = |line: &serde_json::Value| line.to_string().contains("what was read before stays");
        gateway.log_lines().iter().any(told).then_some(())
    };
    eventually("the mistake to be logged", PATIENCE, is_told).await;
    let warned = async || gateway.get("/readyz").await.json()["warnings"].to_string();
    assert!(warned().await.contains("`[api] token_file`"), "{}", warned().await);
    secret(&file, TOKENS);
    let is_clear = async || (!warned().await.contains("token_file")).then_some(());
    eventually("no warning", PATIENCE, is_clear).await;
}

/// Writes a self-signed certificate of this name, and its key.
fn certificate(folder: &Path, name: &str, valid: (i64, i64)) {
    let own = Certificate::authority_for(name, valid);
    std::fs::write(folder.join("tls.crt"), own.certificate.to_pem().expect("PEM")).expect("a file");
    let key = own.key.private_key_to_pem_pkcs8().expect("PEM");
    secret(&folder.join("tls.key"), std::str::from_utf8(&key).expect("text"));
}

/// The name in the certificate that the API shows, and the protocol that it chooses.
async fn handshake(api: &str) -> (String, String) {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).expect("a client");
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_alpn_protos(b"\x02h2\x08http/1.1").expect("protocols");
    let ssl = connector.build().configure().expect("a client").verify_hostname(false);
    let ssl = ssl.into_ssl("localhost").expect("a client");
    let stream = tokio::net::TcpStream::connect(api).await.expect("it listens");
    let mut stream = tokio_openssl::SslStream::new(ssl, stream).expect("a stream");
    std::pin::Pin::new(&mut stream).connect().await.expect("a handshake");
    let shown = stream.ssl().peer_certificate().expect("a certificate");
    let name = shown.subject_name().entries().next().expect("a name").data().to_string().expect("text");
    let protocol = stream.ssl().selected_alpn_protocol().unwrap_or_default();
    (name, String::from_utf8_lossy(protocol).into_owned())
}

#[tokio::test]
async fn tls_certificates_are_replaced_without_a_restart() {
    let (redis, files) = (Redis::start().await, folder("api-tls"));
    certificate(files.path(), "first", LONG);
    let file = |name: &str| quoted(&files.path().join(name).display().to_string());
    let (_, settings) = with_api("inbox-tls", &redis).await;
    let settings =
        settings.set("api.tls", "certificate", file("tls.crt")).set("api.tls", "key", file("tls.key"));
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    assert_eq!(handshake(&api).await, ("first".to_owned(), "h2".to_owned()), "gRPC clients require ALPN");
    let https = reqwest::Client::builder().danger_accept_invalid_certs(true).build().expect("a client");
    let answer = https.get(format!("https://{api}/v1/inbox/ann")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let page: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(page["entries"], json!([]));
    assert!(send(&api, "GET", "/v1/inbox/ann", &[], b"").await.is_err(), "nothing without TLS");

    certificate(files.path(), "second", LONG);
    let renewed = async || (handshake(&api).await.0 == "second").then_some(());
    eventually("the new certificate to be shown", PATIENCE, renewed).await;

    // Readiness warns even while nobody connects.
    std::fs::write(files.path().join("tls.crt"), "no certificate").expect("a file");
    let warned = async || gateway.get("/readyz").await.json()["warnings"].to_string();
    let is_told = async || warned().await.contains("[api.tls]").then_some(());
    eventually("a warning", PATIENCE, is_told).await;
    assert_eq!(handshake(&api).await.0, "second", "what was read before stays");
    certificate(files.path(), "third", LONG);
    let is_clear = async || (!warned().await.contains("tls")).then_some(());
    eventually("no warning", PATIENCE, is_clear).await;

    // There is time to renew a certificate.
    certificate(files.path(), "fourth", (-1, 20));
    let is_told = async || warned().await.contains("within 30 days; renew it").then_some(());
    eventually("a warning of the end", PATIENCE, is_told).await;
    let until = gateway
        .metric(r#"halley_certificate_expiry_timestamp_seconds{section="api.tls"}"#)
        .await
        .expect("a metric");
    let days = (until - now()) / 86_400.0;
    assert!((19.0..20.1).contains(&days), "{days} days");
}

/// Seconds since 1970.
fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64()
}

#[tokio::test]
async fn the_api_can_require_certificates_of_its_clients() {
    let (redis, files) = (Redis::start().await, folder("api-mtls"));
    let (authority, clients) = (Certificate::authority("servers"), Certificate::authority("comets"));
    authority.issue("localhost", VALID).write(files.path(), "own");
    clients.write(files.path(), "clients");
    let tokens = files.path().join("tokens.toml");
    secret(&tokens, TOKENS);
    let file = |name: &str| quoted(&files.path().join(name).display().to_string());
    let (_, settings) = with_api("inbox-mtls", &redis).await;
    let settings = settings
        .set("api", "token_file", file("tokens.toml"))
        .set("api.tls", "certificate", file("own.pem"))
        .set("api.tls", "key", file("own.key"))
        .set("api.tls", "client_ca", file("clients.pem"));
    let gateway = settings.start().await;
    let api = api_of(&gateway).await.replace("127.0.0.1", "localhost");
    let trusted = authority.certificate.to_pem().expect("PEM");
    let ask = async |method: reqwest::Method, client: Option<&Certificate>, token: &str| {
        let trusted = reqwest::Certificate::from_pem(&trusted).expect("an authority");
        let mut https = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]);
        if let Some(client) = client {
            let key = client.key.private_key_to_pem_pkcs8().expect("PEM");
            let own = client.certificate.to_pem().expect("PEM");
            https = https.identity(reqwest::Identity::from_pkcs8_pem(&own, &key).expect("an identity"));
        }
        let request =
            https.build().expect("a client").request(method, format!("https://{api}/v1/inbox/eu-ann"));
        request.bearer_auth(token).send().await.map(|answer| answer.status().as_u16()).ok()
    };
    let get =
        async |client: Option<&Certificate>, token: &str| ask(reqwest::Method::GET, client, token).await;
    let token = "comets-0123456789";
    assert_eq!(get(Some(&clients.issue("comet", VALID)), token).await, Some(200));
    let deleted = ask(reqwest::Method::DELETE, Some(&clients.issue("backend", VALID)), token).await;
    assert_eq!(deleted, Some(200));
    let audit = gateway.wait_for_log("audit: a user's messages were deleted").await;
    assert!(audit["from"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{audit}");
    assert_eq!(
        (&audit["certificate"], &audit["token"]),
        (&"CN=backend, DNS:backend".into(), &"comets".into())
    );
    assert_eq!(get(Some(&clients.issue("comet", VALID)), "nonsense-0123456789").await, Some(401));
    let stranger = Certificate::authority("strangers").issue("comet", VALID);
    for refused in [None, Some(&clients.issue("comet", EXPIRED)), Some(&stranger)] {
        assert_eq!(get(refused, token).await, None, "refused in the handshake");
    }
    // Counted when the client has had time to read why.
    let refused = r#"halley_api_refused_total{reason="tls"}"#;
    eventually_eq(refused, Some(3.0), async || gateway.metric(refused).await).await;
}
