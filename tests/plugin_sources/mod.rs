//! Where plugins come from, and which ones are trusted.

mod files;
mod hostile_registry;
mod limits;
mod publish;
mod registry;
mod trust;
mod writes;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::gateway::{Gateway, Plugin, RunningGateway, quoted};
use crate::support::history::{VERSION_PLACE, version_mark};
use crate::support::{PATIENCE, eventually, repository};

/// A policy called `p` from this file (or reference) that leaves the messages here unchanged.
fn with_plugin(settings: Gateway, path: impl Into<PathBuf>) -> Gateway {
    settings.plugin(harmless(path))
}

fn harmless(path: impl Into<PathBuf>) -> Plugin {
    let mask = json!({
        "words": [VERSION_PLACE.to_string()], "action": "mask", "mask": version_mark(1).to_string(),
    });
    Plugin::new("p", path).set("deadline", quoted("5s")).config(&mask)
}

/// The keyword filter, with different bytes for every number.
fn variant(number: u8) -> Vec<u8> {
    let mut bytes =
        std::fs::read(repository("plugins/dist/keyword_filter.wasm")).expect("`make plugins` built it");
    // One more custom section.
    bytes.extend([0, 3, 1, b'v', number]);
    bytes
}

/// Writes a temporary file and renames it, as a deployment does.
fn put(path: &Path, content: &[u8]) {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, content).expect("writable folder");
    std::fs::rename(temporary, path).expect("writable folder");
}

async fn hash(gateway: &RunningGateway) -> String {
    let status = gateway.get("/v1/plugins/p").await.json();
    status["active"]["hash"].as_str().unwrap_or_else(|| panic!("nothing active: {status}")).to_owned()
}

async fn wait_for_hash(gateway: &RunningGateway, wanted: &str) {
    eventually(format!("version {wanted}"), PATIENCE, async || (hash(gateway).await == wanted).then_some(()))
        .await;
}

/// Waits until the desired set is refused for this reason.
async fn wait_for_refusal(gateway: &RunningGateway, why: &str) {
    eventually(format!("a refusal with `{why}`"), PATIENCE, async || {
        let status = gateway.get("/v1/plugins").await.json();
        status["last_refusal"]["errors"].to_string().contains(why).then_some(())
    })
    .await;
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
