//! Checks which records of a batch were redriven, as they claim. All others are ordinary messages,
//! and their `halley-` headers are ignored.
//!
//! Cost: without claims, a look at the header names. A record with a proof costs a hash of that
//! record, and the first one a round trip to Redis.

use std::sync::Arc;
use std::time::Instant;

use crate::consumer::InFlightRecord;
use crate::message::{ClaimedProof, RedriveClaim, RedriveKey};
use crate::pipeline::metrics::{Metrics, ProofStatus};
use crate::pipeline::retry::{Cancelled, HoldContext, retry_until_cancelled};
use crate::redrive_key::CachedRedriveKey;
use crate::stalls::StallStage;

/// Marks records with a valid proof as trusted. While the key cannot be read, the batch waits.
///
/// # Errors
/// When the partition was cancelled meanwhile.
pub(super) async fn check(
    admitted: &mut [InFlightRecord],
    known: &CachedRedriveKey,
    metrics: &Metrics,
    hold: HoldContext<'_>,
) -> Result<(), Cancelled> {
    let mut proofs = Vec::new();
    for (at, admitted) in admitted.iter().enumerate() {
        match admitted.record.claim() {
            RedriveClaim::None => {}
            RedriveClaim::Unproven => metrics.claimed(ProofStatus::Missing, &admitted.record),
            RedriveClaim::Proof(claimed) => proofs.push((at, claimed)),
        }
    }
    if proofs.is_empty() {
        return Ok(());
    }
    mark_proven(&mut proofs, admitted, known.get(), metrics);
    if !proofs.is_empty() && known.is_stale(Instant::now()) {
        let key = retry_until_cancelled(hold, StallStage::RedriveKey, || known.read()).await?;
        mark_proven(&mut proofs, admitted, key, metrics);
    }
    proofs.iter().for_each(|(at, _)| metrics.claimed(ProofStatus::Invalid, &admitted[*at].record));
    Ok(())
}

/// Marks the records whose proof this key verifies, and removes them from the list.
fn mark_proven(
    proofs: &mut Vec<(usize, ClaimedProof)>,
    admitted: &mut [InFlightRecord],
    key: Option<RedriveKey>,
    metrics: &Metrics,
) {
    let Some(key) = key else { return };
    proofs.retain(|(at, claimed)| {
        let is_proven = key.proves(claimed);
        if is_proven {
            Arc::make_mut(&mut admitted[*at].record).trusted = true;
            metrics.claimed(ProofStatus::Valid, &admitted[*at].record);
        }
        !is_proven
    });
}
