//! The policy set of a batch, with this worker's instances of its plugins.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::decision::PolicyStalled;
use crate::pipeline::retry::{Cancelled, HoldContext, Retry};
use crate::policy::{Chain, Policies, PolicySet};
use crate::stalls::StallStage;

/// One policy set, shared by a batch's stages and delivery tasks. The set is freed when the last
/// of them is done.
#[derive(Clone)]
pub(super) struct BatchChain {
    policies: Arc<Policies>,
    set: Arc<PolicySet>,
    chain: Arc<Mutex<Chain>>,
}

impl BatchChain {
    /// The active set.
    pub(super) fn new(policies: &Arc<Policies>) -> Self {
        let set = policies.current();
        let chain = Arc::new(Mutex::new(set.chain()));
        Self { policies: Arc::clone(policies), set, chain }
    }

    /// The chain for the next batch: this one, unless another set is active.
    pub(super) fn renewed(&self) -> Self {
        if self.policies.current().generation() == self.set.generation() {
            return self.clone();
        }
        Self::new(&self.policies)
    }

    pub(super) fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Calls the policies. While one of them stalls, retries with the set that is active then: a
    /// stall is often fixed by replacing the plugin.
    pub(super) async fn call<T>(
        &self,
        hold: HoldContext<'_>,
        call: impl Fn(&mut Chain) -> Result<T, PolicyStalled>,
    ) -> Result<T, Cancelled> {
        self.call_again(&mut Retry::new(hold, StallStage::Policy), call).await
    }

    /// Like [`BatchChain::call`], for work that takes several calls.
    pub(super) async fn call_again<T>(
        &self,
        retry: &mut Retry<'_>,
        call: impl Fn(&mut Chain) -> Result<T, PolicyStalled>,
    ) -> Result<T, Cancelled> {
        let attempt = || async {
            let mut chain = self.chain.lock().await;
            let result = call(&mut chain);
            if result.is_err() {
                let current = self.policies.current();
                if current.generation() != chain.set().generation() {
                    *chain = current.chain();
                }
            }
            result
        };
        retry.until_done(attempt).await
    }
}
