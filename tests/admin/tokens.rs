//! Tokens: what each one grants, and the rate limit on guessing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::admin::{refused, with_a_policy};
use crate::support::gateway::{RunningGateway, quoted};
use crate::support::{PATIENCE, folder, secret};

const WRITE: &str = "the-token-for-writes-of-this-story";
const READ: &str = "the-token-for-reads-of-this-story";

async fn with_tokens(story: &str) -> RunningGateway {
    let settings = with_a_policy(story).await.set("admin", "protect_metrics", true);
    settings
        .environment("HALLEY_ADMIN_TOKEN", WRITE)
        .environment("HALLEY_ADMIN_READ_TOKEN", READ)
        .start()
        .await
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn each_token_opens_its_routes() {
    let gateway = with_tokens("roles").await;
    let (read, write) = (bearer(READ), bearer(WRITE));
    for path in ["/v1/plugins", "/v1/plugins/p", "/v1/comets", "/v1/stalls", "/v1/routes/lobby", "/metrics"] {
        assert_eq!(gateway.get(path).await.status, 401, "{path}");
        for token in [&read, &write] {
            let answer = gateway.send("GET", path, &[("authorization", token)], b"").await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        }
    }
    assert_eq!((gateway.get("/healthz").await.status, gateway.get("/readyz").await.status), (200, 200));
    let release =
        async |token| gateway.send("POST", "/v1/plugins/p/release", &[("authorization", token)], b"").await;
    let refused = release(&read).await;
    assert!(refused.status == 403 && refused.body.contains("role `operate`"), "{}", refused.body);
    assert_eq!(release(&write).await.status, 200);
}

#[tokio::test]
async fn roles_are_separate_and_writes_leave_an_audit_line() {
    let files = folder("roles");
    let file = files.path().join("tokens.toml");
    secret(
        &file,
        "[[token]]\nname = \"ci\"\ntoken = \"ci-0123456789abcdef\"\nroles = [\"push-policies\"]\n\
         [[token]]\nname = \"alice\"\ntoken = \"alice-0123456789abcdef\"\nroles = [\"operate\"]\n",
    );
    let settings = with_a_policy("named-roles").await;
    let gateway = settings.set("admin", "token_file", quoted(&file.display().to_string())).start().await;
    let (ci, alice) = (bearer("ci-0123456789abcdef"), bearer("alice-0123456789abcdef"));
    let release =
        async |token| gateway.send("POST", "/v1/plugins/p/release", &[("authorization", token)], b"").await;
    let push =
        async |token| gateway.send("PUT", "/v1/plugins/p", &[("authorization", token)], b"no wasm").await;
    for token in [&ci, &alice] {
        assert_eq!(gateway.send("GET", "/v1/plugins", &[("authorization", token)], b"").await.status, 200);
    }
    assert_eq!((release(&ci).await.status, push(&alice).await.status), (403, 403));
    assert_eq!((release(&alice).await.status, push(&ci).await.status), (200, 422));
    let denied = gateway.wait_for_log("audit: denied").await;
    assert_eq!((&denied["token"], &denied["path"]), (&"ci".into(), &"/v1/plugins/p/release".into()));
    assert!(denied["outcome"].as_str().is_some_and(|why| why.contains("role `operate`")), "{denied}");
    let released = gateway.wait_for_log("audit: a write").await;
    assert_eq!((&released["token"], &released["path"]), (&"alice".into(), &"/v1/plugins/p/release".into()));
    assert!(released["before"].as_str().is_some_and(|before| before.starts_with("p:")), "{released}");
    assert_eq!(released["before"], released["after"], "nothing was overridden");
    for (operation, outcome) in [("release", "applied"), ("push", "refused")] {
        let series =
            format!("halley_admin_writes_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} 1");
        let metrics = gateway.operate("GET", "/metrics", &[], b"").await.body;
        assert!(metrics.contains(&series), "{series} not in\n{metrics}");
    }
}

#[tokio::test]
async fn guessing_is_rate_limited_and_floods_no_log() {
    let gateway = with_tokens("guesses").await;
    let guess = async |number: usize| {
        let token = bearer(&format!("a-guess-that-is-wrong-{number}"));
        gateway.send("POST", "/v1/plugins/p/release", &[("authorization", &token)], b"").await
    };
    let mut looked_at = 0;
    for number in 0..300 {
        let answer = guess(number).await;
        match answer.status {
            401 => looked_at += 1,
            429 => assert!(answer.head.to_lowercase().contains("retry-after: "), "{}", answer.head),
            other => panic!("{other}: {}", answer.body),
        }
    }
    assert!(looked_at < 100, "{looked_at} of 300 guesses were looked at");
    let metrics = gateway.operate("GET", "/metrics", &[], b"").await.body;
    let counted = format!("halley_admin_refused_total{{reason=\"guessing\"}} {}", 300 - looked_at);
    assert!(metrics.contains(&counted), "{counted} not in\n{metrics}");

    // Other clients and the operator are not locked out.
    let status = status_from("127.0.0.2", gateway.admin()).await;
    assert_eq!(status, "HTTP/1.1 200");
    assert_eq!(gateway.operate("POST", "/v1/plugins/p/release", &[], b"").await.status, 200);
    let lines: Vec<String> = gateway.log_lines().iter().map(ToString::to_string).collect();
    let about = lines.iter().filter(|line| line.contains(" denied: ")).count();
    assert!((2..50).contains(&about), "{about} lines about 300 guesses");
    assert!(!lines.iter().any(|line| line.contains("a-guess-that") || line.contains(WRITE)), "no tokens");
}

/// The response to a write with the correct token from this address.
async fn status_from(from: &str, gateway: &str) -> String {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("loopback has it");
    let mut stream =
        socket.connect(gateway.parse().expect("an address")).await.expect("the listener is there");
    let request = format!(
        "POST /v1/plugins/p/release HTTP/1.1\r\nHost: {gateway}\r\nAuthorization: Bearer {WRITE}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it is read");
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("text");
    answer[..12].to_owned()
}

#[tokio::test]
async fn reads_stay_open_on_loopback_while_there_is_no_token() {
    let gateway = with_a_policy("open").await.start().await;
    for path in ["/v1/plugins", "/v1/comets", "/v1/stalls", "/v1/routes/lobby", "/metrics"] {
        assert_eq!(gateway.get(path).await.status, 200, "{path}");
    }
    assert_eq!(refused(&gateway, "no_token").await, 0.0);
}
