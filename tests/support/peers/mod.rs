//! Peers that share no code with the gateway: comets on grpc-go and on gRPC's C core, which keep to
//! their own defaults, and a producer that is not librdkafka.
//!
//! ```ignore
//! let Some(comet) = PeerComet::start(Stack::GrpcGo).await else { return };
//! let gateway = gateway(&topic).node_at(comet.address()).start().await;
//! comet.wait_for_deliveries(&[(To::Everyone { speed: 0 }, 4, "hello")]).await;
//!
//! let Some(producer) = Producer::new(kafka().brokers(), &topic).await else { return };
//! producer.compression("zstd").write(&[Outgoing::new("value").header(b"\xff", "1")]).await;
//! ```
//!
//! `tests/peers/build.sh` builds them on first use. Where their tools cannot be had, `None` is what
//! there is, and a loud line says which story stays unproven.

mod comet;
mod producer;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub use comet::{PeerComet, Stack};
pub use producer::{Outgoing, Producer, Written};

use super::{print_uncaptured, repository};

/// How `build.sh` says that the tools of a peer cannot be had.
const LACKING: i32 = 3;

/// The program that `tests/peers/build.sh` gives for `go`, `comet-go` or `python`; built when needed.
pub async fn program(peer: &'static str) -> Option<PathBuf> {
    static GO: OnceLock<Option<PathBuf>> = OnceLock::new();
    static COMET_GO: OnceLock<Option<PathBuf>> = OnceLock::new();
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let story = std::thread::current().name().unwrap_or("a story").to_owned();
    let slot = match peer {
        "go" => &GO,
        "comet-go" => &COMET_GO,
        _ => &PYTHON,
    };
    let built = tokio::task::spawn_blocking(move || slot.get_or_init(|| build(peer)).clone());
    let program = built.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    if program.is_none() {
        print_uncaptured(format_args!(
            "NOT PROVEN: `{story}` needs the peer in `{peer}`, whose tools are missing"
        ));
    }
    program
}

fn build(peer: &str) -> Option<PathBuf> {
    let output = Command::new("sh").arg(repository("tests/peers/build.sh")).arg(peer).output();
    let output = output.expect("a shell runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.is_empty() {
        print_uncaptured(said.trim());
    }
    if output.status.code() == Some(LACKING) {
        return None;
    }
    assert!(output.status.success(), "tests/peers/build.sh {peer} failed");
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
