//! Misbehaving clients, over real connections and with short deadlines.

use std::net::SocketAddr;

use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// More than the kernel and hyper buffer.
const LARGE: usize = 16 * 1024 * 1024;
/// Upper bound for every step.
const PATIENCE: Duration = Duration::from_secs(20);

struct TestServer {
    server: Server,
    address: SocketAddr,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

async fn start(max_connections: usize, timeouts: ConnectionTimeouts) -> TestServer {
    let router = Router::new()
        .route("/small", get(|| async { "small" }))
        .route("/large", get(|| async { "x".repeat(LARGE) }));
    let refusals = Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin");
    let server = Server { timeouts, ..Server::new(router, max_connections, &refusals) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let tasks = JoinSet::from_iter([server.clone().serve(listener, shutdown.clone())]);
    TestServer { server, address, shutdown, tasks }
}

impl TestServer {
    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Everything that is received until the connection is closed.
    async fn exchange(&self, bytes: &[u8]) -> String {
        rest_of(self.send(bytes).await).await
    }

    async fn get(&self) -> String {
        self.exchange(b"GET /small HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await
    }

    async fn wait_until_open(&self, connections: usize) {
        let wait = async {
            while self.server.connections.len() != connections {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
    }
}

async fn rest_of(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_connection_serves_several_requests() {
    let running = start(8, TIMEOUTS).await;
    let request = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = "GET /small HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answers = running.exchange(format!("{request}{request}{last}").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    running.wait_until_open(0).await;
}

#[tokio::test]
async fn http_2_is_not_supported() {
    let running = start(8, TIMEOUTS).await;
    // The preface and empty settings of a client with prior knowledge.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = running.exchange(preface).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    let upgrade = "GET /small HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    let mut stream = running.send(upgrade.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn heads_are_bounded() {
    let running = start(8, TIMEOUTS).await;
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    let long = format!("a: {}\r\n", "b".repeat(2 * MAX_HEAD));
    for headers in [many, long] {
        let answer = running.exchange(format!("GET /small HTTP/1.1\r\n{headers}\r\n").as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer:?}");
    }
    assert!(running.get().await.ends_with("small"));
}

#[tokio::test]
async fn clients_that_do_nothing_are_closed() {
    let short = Duration::from_millis(100);
    let running = start(64, ConnectionTimeouts { head: short, idle: short, ..TIMEOUTS }).await;
    let silent = running.send(b"").await;
    let half = running.send(b"GET /small HTTP/1.1\r\nHost").await;
    let idle = running.send(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(rest_of(silent).await, "");
    assert_eq!(rest_of(half).await, "");
    assert!(rest_of(idle).await.starts_with("HTTP/1.1 200"));
    running.wait_until_open(0).await;
}

#[tokio::test]
async fn clients_that_do_not_read_are_closed() {
    let running = start(64, ConnectionTimeouts { stall: Duration::from_millis(100), ..TIMEOUTS }).await;
    let pipelined = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50);
    let mut deaf = Vec::new();
    for _ in 0..3 {
        deaf.push(running.send(pipelined.as_bytes()).await);
    }
    running.wait_until_open(0).await;
    for stream in deaf {
        assert!(rest_of(stream).await.len() < LARGE, "the answer was cut off");
    }
    assert!(running.get().await.ends_with("small"));
}

#[tokio::test]
async fn waiting_clients_do_not_lock_out_others() {
    let running = start(16, TIMEOUTS).await;
    let mut waiting = Vec::new();
    for number in 0..100 {
        waiting.push(running.send(if number % 2 == 0 { b"GET /small HTTP/1.1\r\n" } else { b"" }).await);
        if number % 10 == 9 {
            assert!(running.get().await.ends_with("small"));
        }
        assert!(running.server.connections.len() <= 16);
    }
}

#[tokio::test]
async fn the_shutdown_ends_every_connection() {
    let mut running = start(16, TIMEOUTS).await;
    let idle = running.send(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let half = running.send(b"GET").await;
    running.wait_until_open(2).await;
    running.shutdown.cancel();
    timeout(PATIENCE, running.tasks.join_next()).await.unwrap();
    assert!(rest_of(idle).await.starts_with("HTTP/1.1 200"));
    assert_eq!(rest_of(half).await, "");
}
