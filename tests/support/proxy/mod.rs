//! A fault-injecting TCP proxy in this process, in front of a comet, Redis or Kafka.
//!
//! It listens on one port for its whole life, whether the target is reachable or not. Its random
//! decisions follow from its seed and the connection's number, so that a failure can be reproduced.
//! It has its own runtime: a test that blocks does not stop the traffic.
//!
//! It knows no protocol. Kafka directs its clients to its own address; use `Kafka::own_behind_proxy`
//! for a broker behind a proxy.

mod pump;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A network fault. It applies to existing and new connections; data written after [`Proxy::inject`]
/// has returned is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every piece is delayed, in order.
    Latency { at_least: Duration, at_most: Duration },
    /// In each direction of each connection.
    Bandwidth { bytes_per_second: u32 },
    /// Nothing passes; connections stay open, and new ones are accepted without data. Data in transit
    /// is lost: when the fault ends, the connections are reset.
    BlackHole,
    /// Data from clients arrives, responses do not. When the fault ends, the connections are reset.
    HalfOpen,
    /// Connections are reset, new ones immediately.
    Refuse,
    /// Each connection is reset after 1 to 2,000 bytes in both directions together.
    CutMidFrame,
}

impl Fault {
    /// Whether connections lose data under it.
    fn drops_bytes(self) -> bool {
        matches!(self, Self::BlackHole | Self::HalfOpen)
    }
}

/// The state that all connections follow.
#[derive(Debug, Clone, Copy, Default)]
struct ProxyState {
    fault: Option<Fault>,
    /// How often all connections have been reset.
    cuts: u64,
}

/// Maximum number of bytes before [`Fault::CutMidFrame`] cuts.
const LONGEST: usize = 2000;

/// A proxy; it and its connections end with this value.
pub struct Proxy {
    address: SocketAddr,
    target: String,
    order: watch::Sender<ProxyState>,
    opened: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy for `target` (`host:port`), which is resolved for every connection: it may
    /// start later, stop and restart. Initially without faults.
    pub async fn start(target: impl Into<String>, seed: u64) -> Self {
        let target = target.into();
        let (order, states) = watch::channel(ProxyState::default());
        let opened = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = listen(&runtime).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepting = accept(listener, target.clone(), seed, opened.clone(), states);
        // The runtime owns the task, and the proxy owns the runtime.
        drop(runtime.spawn(accepting));
        Self { address, target, order, opened, runtime: Some(runtime) }
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The address of the target.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Applies this fault instead of the current one.
    pub fn inject(&self, fault: Fault) {
        self.change(Some(fault));
    }

    /// Ends the current fault.
    pub fn heal(&self) {
        self.change(None);
    }

    /// Resets all connections, on both sides. New ones are treated as before.
    pub fn cut(&self) {
        self.order.send_modify(|order| order.cuts += 1);
    }

    /// The number of connections that clients have opened so far.
    pub fn connections(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn change(&self, fault: Option<Fault>) {
        self.order.send_modify(|order| {
            let ends_loss = order.fault != fault && order.fault.is_some_and(Fault::drops_bytes);
            if ends_loss || fault == Some(Fault::Refuse) {
                order.cuts += 1;
            }
            order.fault = fault;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Does not wait: dropping a runtime inside another one would block it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listen(runtime: &Runtime) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let _entered = runtime.enter();
    TcpListener::from_std(listener)
}

async fn accept(
    listener: TcpListener,
    target: String,
    seed: u64,
    opened: Arc<AtomicUsize>,
    states: watch::Receiver<ProxyState>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let number = opened.fetch_add(1, Ordering::Relaxed) as u64;
                    // Neighbouring seeds have similar beginnings; this spreads them.
                    let dice = fastrand::Rng::with_seed(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    connections.spawn(pump::connection(client, target.clone(), dice, states.clone()));
                }
                // Out of files, or the client has disconnected.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
