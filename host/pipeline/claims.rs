//! Checks which records of a batch were redriven, as they claim. All others are ordinary messages,
//! and their `halley-` headers are ignored.
//!
//! Cost: without claims, a look at the header names. A record with a proof costs a hash of that
//! record, and the first one a round trip to Redis.

use std::sync::Arc;
use std::time::Instant;

use crate::consumer::Admitted;
use crate::message::{Claim, Claimed, RedriveKey};
use crate::pipeline::metrics::{Metrics, Proof};
use crate::pipeline::persist::{Abandoned, Hold, persist};
use crate::redrive_key::KnownKey;
use crate::stalls::StallStage;

/// Marks records with a valid proof as trusted. While the key cannot be read, the batch waits.
///
/// # Errors
/// When the partition was cancelled meanwhile.
pub(super) async fn check(
    admitted: &mut [Admitted],
    known: &KnownKey,
    metrics: &Metrics,
    hold: Hold<'_>,
) -> Result<(), Abandoned> {
    let mut proofs = Vec::new();
    for (at, admitted) in admitted.iter().enumerate() {
        match admitted.record.claim() {
            Claim::None => {}
            Claim::Unproven => metrics.claimed(Proof::Missing, &admitted.record),
            Claim::Proof(claimed) => proofs.push((at, claimed)),
        }
    }
    if proofs.is_empty() {
        return Ok(());
    }
    believe(&mut proofs, admitted, known.get(), metrics);
    if !proofs.is_empty() && known.is_stale(Instant::now()) {
        let key = persist(hold, StallStage::RedriveKey, || known.read()).await?;
        believe(&mut proofs, admitted, key, metrics);
    }
    proofs.iter().for_each(|(at, _)| metrics.claimed(Proof::Invalid, &admitted[*at].record));
    Ok(())
}

/// Marks the records whose proof this key verifies, and removes them from the list.
fn believe(
    proofs: &mut Vec<(usize, Claimed)>,
    admitted: &mut [Admitted],
    key: Option<RedriveKey>,
    metrics: &Metrics,
) {
    let Some(key) = key else { return };
    proofs.retain(|(at, claimed)| {
        let is_proven = key.proves(claimed);
        if is_proven {
            Arc::make_mut(&mut admitted[*at].record).trusted = true;
            metrics.claimed(Proof::Valid, &admitted[*at].record);
        }
        !is_proven
    });
}
