//! Without a token, writes use the Unix socket; over TCP the Host has to be known.

use std::process::Command;

use crate::admin::{refused, status_of, with_a_policy};
use crate::steering::{failed, succeeded};
use crate::support::gateway::quoted;
use crate::support::{folder, repository};

#[tokio::test]
async fn a_local_user_writes_only_over_the_socket() {
    let gateway = with_a_policy("local").await.start().await;
    let bytes =
        std::fs::read(repository("plugins/dist/keyword_filter.wasm")).expect("`make plugins` built it");
    for headers in [
        &[][..],
        &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")],
        &[("authorization", "Bearer 0123456789abcdef")],
        &[("host", "localhost")],
    ] {
        let answer = gateway.send("PUT", "/v1/plugins/p", headers, &bytes).await;
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.body);
        assert!(answer.body.contains("`[admin] token_file`"), "{}", answer.body);
        assert_eq!(gateway.send("POST", "/v1/plugins/p/release", headers, b"").await.status, 403);
    }
    assert_eq!(gateway.get("/v1/plugins/p").await.json()["active"]["name"], "p", "reads are local");
    assert!(refused(&gateway, "forbidden").await >= 8.0);
    assert_eq!(gateway.operate("POST", "/v1/plugins/p/release", &[], b"").await.status, 200);
    let browser = [("origin", "http://localhost")];
    assert_eq!(gateway.operate("POST", "/v1/plugins/p/release", &browser, b"").await.status, 403);
    let socket = gateway.file().with_file_name("admin.sock");
    assert!(gateway.sigterm().await.success());
    assert!(!socket.exists(), "it is removed with the gateway");
}

#[tokio::test]
async fn reads_and_writes_are_for_known_hosts_only() {
    let settings = with_a_policy("hosts").await.set("admin", "allowed_hosts", "[\"halley.example.com\"]");
    let gateway = settings.start().await;
    let reads = ["/readyz", "/metrics", "/v1/plugins", "/v1/comets", "/v1/stalls", "/v1/routes/lobby"];
    for path in reads {
        for host in ["evil.example", "127.0.0.1.evil.example:9093", "127.1"] {
            let answer = gateway.send("GET", path, &[("host", host)], b"").await;
            assert_eq!(answer.status, 421, "{path} for {host}: {}", answer.body);
            assert!(answer.body.contains("`[admin] allowed_hosts`"), "{}", answer.body);
        }
        for host in ["halley.example.com", "localhost:9093", "10.1.2.3:9093", "[::1]:9093"] {
            assert_ne!(
                gateway.send("GET", path, &[("host", host)], b"").await.status,
                421,
                "{path} for {host}"
            );
        }
    }
    let address = gateway.admin();
    for (head, expected) in [
        ("GET /metrics HTTP/1.1\r\n", 421),
        ("GET /metrics HTTP/1.0\r\n", 421),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 421),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 421),
        ("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n", 421),
        ("GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("POST /v1/plugins/p/release HTTP/1.1\r\nContent-Length: 0\r\n", 421),
        // Load balancers send this.
        ("GET /healthz HTTP/1.0\r\n", 200),
    ] {
        let status = status_of(address, &format!("{head}Connection: close\r\n\r\n")).await;
        assert_eq!(status, expected, "{head}");
    }
    assert!(refused(&gateway, "host").await >= 24.0);
}

#[tokio::test]
async fn the_command_finds_the_gateway_of_its_user() {
    let runtime = folder("runtime");
    let home = runtime.path().display().to_string();
    let settings = with_a_policy("auto").await.set("admin", "socket", quoted("auto"));
    let gateway = settings.environment("XDG_RUNTIME_DIR", &home).start().await;
    let release = |home: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        let command = command.args(["plugin", "release", "p", "--gateway", &gateway.url()]);
        command.env("XDG_RUNTIME_DIR", home).output().expect("the binary runs")
    };
    succeeded(&release(&home));
    assert!(failed(&release("/nowhere")).contains("writes require a token"), "another user's place");
    let socket = runtime.path().join("halley").join(format!("admin-{}.sock", port_of(gateway.admin())));
    assert!(socket.exists());
    // A dead gateway's socket is not a gateway, and the command reports it.
    gateway.kill();
    assert!(socket.exists());
    assert!(failed(&release(&home)).contains("gateway unreachable at http://127.0.0.1:"));
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').expect("host:port").1
}
