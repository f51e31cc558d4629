//! Tests of the fault-injecting proxy: it injects the requested faults, and no others.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::PATIENCE;
use crate::support::proxy::{Fault, Proxy};

const SEED: u64 = 4711;

/// A server that returns its connections.
struct Server {
    address: SocketAddr,
    accepted: mpsc::Receiver<TcpStream>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (give, accepted) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if give.send(stream).await.is_err() {
                    return;
                }
            }
        });
        Self { address, accepted, _tasks: tasks }
    }

    async fn accept(&mut self) -> TcpStream {
        soon("a connection", self.accepted.recv()).await.expect("the server runs")
    }
}

/// A server with a proxy, and both ends of a connection through it.
struct Pair {
    server: Server,
    proxy: Proxy,
    near: TcpStream,
    far: TcpStream,
}

async fn pair() -> Pair {
    let mut server = Server::start().await;
    let proxy = Proxy::start(server.address.to_string(), SEED).await;
    let near = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let far = server.accept().await;
    Pair { server, proxy, near, far }
}

impl Pair {
    /// Opens another connection.
    async fn connect(&mut self) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(self.proxy.address()).await.expect("the proxy listens");
        (near, self.server.accept().await)
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let in_time = tokio::time::timeout(PATIENCE, future).await;
    in_time.unwrap_or_else(|_| panic!("timed out after {PATIENCE:?} waiting for {what}"))
}

async fn say(stream: &mut TcpStream, text: &str) {
    soon("a write", stream.write_all(text.as_bytes())).await.expect("written");
}

async fn hear(stream: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    soon(text, stream.read_exact(&mut heard)).await.unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

/// Reads to the end; returns the bytes and how the connection ended.
async fn rest(mut stream: impl AsyncRead + Unpin) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    let end = soon("the connection's end", stream.read_to_end(&mut all)).await;
    (all, end.map(|_| ()))
}

async fn is_reset(stream: &mut TcpStream) {
    let (heard, end) = rest(stream).await;
    let kind = end.expect_err("an end by reset").kind();
    assert_eq!((heard.len(), kind), (0, io::ErrorKind::ConnectionReset));
}

/// Nothing arrives while a message passes over another connection.
async fn hears_nothing(stream: &mut TcpStream) {
    let silence = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0])).await;
    assert!(silence.is_err(), "heard {silence:?}");
}

#[tokio::test]
async fn everything_passes_unchanged_and_ends_properly() {
    let Pair { proxy, mut near, far, .. } = pair().await;
    assert_eq!(
        (proxy.connections(), proxy.target()),
        (1, far.local_addr().expect("open").to_string().as_str())
    );
    let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    let (from_near, mut to_near) = near.split();
    let echo = async {
        let (mut from, mut to) = far.into_split();
        copy(&mut from, &mut to).await.expect("echoes");
    };
    let write = async {
        to_near.write_all(&sent).await.expect("written");
        to_near.shutdown().await.expect("closed");
    };
    let ((), (), (echoed, end)) =
        soon("the echo", async { tokio::join!(echo, write, rest(from_near)) }).await;
    end.expect("a proper end");
    assert!(echoed == sent, "{} of {} bytes came back, or others", echoed.len(), sent.len());
}

#[tokio::test]
async fn late_pieces_arrive_in_order_and_not_early() {
    let Pair { proxy, mut near, mut far, .. } = pair().await;
    let late = Duration::from_millis(20);
    proxy.inject(Fault::Latency { at_least: late, at_most: late * 2 });
    let start = Instant::now();
    let sent: String = (0..50).map(|n| format!("{n} ")).collect();
    for piece in sent.split_inclusive(' ') {
        say(&mut near, piece).await;
        tokio::task::yield_now().await;
    }
    hear(&mut far, &sent).await;
    assert!(start.elapsed() >= late);
    say(&mut far, "back").await;
    hear(&mut near, "back").await;
    assert!(start.elapsed() >= late * 2);

    proxy.inject(Fault::Latency { at_least: Duration::from_secs(3600), at_most: Duration::from_secs(3600) });
    say(&mut near, "held").await;
    hears_nothing(&mut far).await;
    proxy.heal();
    hear(&mut far, "held").await;
}

#[tokio::test]
async fn bandwidth_is_limited() {
    let Pair { proxy, mut near, mut far, .. } = pair().await;
    proxy.inject(Fault::Bandwidth { bytes_per_second: 10_000 });
    let start = Instant::now();
    let sent = "0123456789".repeat(200);
    say(&mut near, &sent).await;
    hear(&mut far, &sent).await;
    // All but the last 200 bytes have been waited for.
    assert!(start.elapsed() >= Duration::from_millis(180), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_black_hole_is_silent_and_ends_with_a_reset() {
    let mut pair = pair().await;
    let (mut other_near, mut other_far) = pair.connect().await;
    pair.proxy.inject(Fault::BlackHole);
    let mut young = TcpStream::connect(pair.proxy.address()).await.expect("accepted");
    say(&mut pair.near, "lost").await;
    say(&mut other_far, "lost").await;
    say(&mut young, "lost").await;
    for mute in [&mut pair.near, &mut pair.far, &mut other_near, &mut other_far, &mut young] {
        hears_nothing(mute).await;
    }
    pair.server.accepted.try_recv().expect_err("nothing reaches the server");

    pair.proxy.heal();
    for lost in [&mut pair.near, &mut pair.far, &mut other_near, &mut other_far, &mut young] {
        is_reset(lost).await;
    }
    let (mut near, mut far) = pair.connect().await;
    say(&mut near, "again").await;
    hear(&mut far, "again").await;
    assert_eq!(pair.proxy.connections(), 4);
}

#[tokio::test]
async fn a_half_open_connection_passes_one_way() {
    let mut pair = pair().await;
    pair.proxy.inject(Fault::HalfOpen);
    let (mut near, mut far) = pair.connect().await;
    for (near, far) in [(&mut near, &mut far), (&mut pair.near, &mut pair.far)] {
        say(near, "question").await;
        hear(far, "question").await;
        say(far, "answer").await;
        hears_nothing(near).await;
    }
    pair.proxy.heal();
    for lost in [&mut near, &mut far, &mut pair.near, &mut pair.far] {
        is_reset(lost).await;
    }
}

#[tokio::test]
async fn refused_connections_are_reset() {
    let mut pair = pair().await;
    pair.proxy.inject(Fault::Refuse);
    is_reset(&mut pair.near).await;
    is_reset(&mut pair.far).await;
    // The reset may arrive before the connect has returned.
    if let Ok(mut young) = TcpStream::connect(pair.proxy.address()).await {
        is_reset(&mut young).await;
    }
    pair.proxy.heal();
    let (mut near, mut far) = pair.connect().await;
    say(&mut far, "welcome").await;
    hear(&mut near, "welcome").await;

    pair.proxy.cut();
    is_reset(&mut near).await;
    is_reset(&mut far).await;
    let (mut near, mut far) = pair.connect().await;
    say(&mut near, "here again").await;
    hear(&mut far, "here again").await;
}

#[tokio::test]
async fn the_target_may_start_later_and_stop() {
    let port = crate::support::free_port();
    let proxy = Proxy::start(format!("127.0.0.1:{port}"), SEED).await;
    if let Ok(mut early) = TcpStream::connect(proxy.address()).await {
        is_reset(&mut early).await;
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("still free");
    let mut near = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let (mut far, _) = soon("a connection", listener.accept()).await.expect("accepted");
    say(&mut near, "at last").await;
    hear(&mut far, "at last").await;
    far.set_zero_linger().expect("open");
    drop(far);
    is_reset(&mut near).await;
}

/// How many of 8,000 bytes arrive on each connection that is cut.
async fn cuts(seed: u64) -> Vec<usize> {
    let mut server = Server::start().await;
    let proxy = Proxy::start(server.address.to_string(), seed).await;
    proxy.inject(Fault::CutMidFrame);
    let mut arrived = Vec::new();
    for _ in 0..8 {
        let mut near = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
        let far = server.accept().await;
        // The cut may happen during the write.
        let _ = near.write_all(&[7; 8000]).await;
        let (heard, end) = rest(far).await;
        end.expect_err("an end by reset");
        rest(near).await.1.expect_err("an end by reset");
        arrived.push(heard.len());
    }
    proxy.heal();
    let mut near = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    near.write_all(&[7; 8000]).await.expect("written");
    drop(near);
    assert_eq!(rest(server.accept().await).await.0.len(), 8000);
    arrived
}

#[tokio::test]
async fn the_same_seed_cuts_in_the_same_places() {
    let (first, again, other) = (cuts(1).await, cuts(1).await, cuts(2).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    let all: Vec<usize> = [first, other].concat();
    assert!(all.iter().all(|bytes| (1..=2000).contains(bytes)), "{all:?}");
    assert!(all.windows(2).any(|two| two[0] != two[1]), "{all:?}");
}
