//! A shadow is compared with its own plugin's active version only, not with other plugins of the chain.

use serde_json::json;

use super::*;
use crate::decision::DifferenceKind;
use crate::policy::{Difference, RolloutConfig, RolloutMode};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a message through `first` and through a filter that lets it pass, whose shadow obeys it.
/// Returns the difference.
async fn difference(first: PluginConfig, on_error: OnError, body: &str) -> Difference {
    let shadow =
        RolloutConfig { path: guest("unruly").into(), mode: RolloutMode::Shadow, ..RolloutConfig::default() };
    let filter = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plugins/dist/keyword_filter.wasm");
    let passing = PluginConfig {
        rollout: Some(shadow),
        deadline: Duration::from_millis(500),
        ..configured(PluginConfig::new("p", filter), json!({ "words": ["never said"] }))
    };
    let policies = Engine::new().policies(&[first, with(passing, on_error)]);
    policies.current().chain().filter("push", 0, vec![room(body)]).unwrap();
    let found = || policies.differences("p").unwrap();
    let compared = async {
        while found().compared < 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The count of compared messages is raised before the difference is added.
        while found().latest.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, compared).await.expect("a difference is found");
    found().latest.remove(0)
}

#[tokio::test]
async fn an_earlier_amendment_is_not_shown_as_the_active_decision() {
    let found = difference(unruly("first"), OnError::Pass, "body drop it").await;
    assert_eq!(found.kind, DifferenceKind::Verdict);
    assert_eq!((&*found.active, &*found.candidate), ("passed", "dropped: it"));
}

#[tokio::test]
async fn a_candidate_that_fails_after_an_earlier_failure_differs() {
    let found = difference(with(unruly("first"), OnError::Pass), OnError::Pass, "trap").await;
    assert_eq!((found.kind, &*found.active), (DifferenceKind::Failed, "passed"));
    assert!(found.candidate.starts_with("failed: trapped: "), "{found:?}");
}

#[tokio::test]
async fn a_candidate_that_would_stall_differs() {
    let found = difference(with(unruly("first"), OnError::Pass), OnError::Stall, "trap").await;
    assert_eq!((found.kind, &*found.active), (DifferenceKind::Failed, "passed"));
    assert!(found.candidate.ends_with("; its partition holds its records"), "{found:?}");
}
