//! Which messages are traced. Pure.

/// How it is decided which messages are traced; the names are those of `OTEL_TRACES_SAMPLER`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
pub enum Sampler {
    /// As the producer decided, where a message has its `traceparent`; the ratio decides for others.
    #[default]
    #[serde(rename = "parentbased_traceidratio")]
    ParentBased,
    /// The ratio decides for all.
    #[serde(rename = "traceidratio")]
    Ratio,
}

impl Sampler {
    /// Whether the message of this trace is traced. `parent_is_sampled` is the producer's decision.
    pub(super) fn samples(self, ratio: f64, trace_id: u128, parent_is_sampled: Option<bool>) -> bool {
        match (self, parent_is_sampled) {
            (Self::ParentBased, Some(is_sampled)) => is_sampled,
            (Self::ParentBased, None) | (Self::Ratio, _) => is_within(ratio, trace_id),
        }
    }
}

/// Whether a trace is among this share of all, decided by its id, so that all who use the same ratio decide
/// the same. As the samplers of OpenTelemetry's SDKs do.
fn is_within(ratio: f64, trace_id: u128) -> bool {
    // 63 bits of the random part.
    let place = (trace_id as u64) >> 1;
    ratio >= 1.0 || (place as f64) < ratio * (1_u64 << 63) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_producer_decides_where_it_traces() {
        for ratio in [0.0, 1.0] {
            for decided in [true, false] {
                assert_eq!(Sampler::ParentBased.samples(ratio, 7, Some(decided)), decided);
                assert_eq!(Sampler::Ratio.samples(ratio, 7, Some(decided)), ratio == 1.0);
            }
            assert_eq!(Sampler::ParentBased.samples(ratio, u128::MAX, None), ratio == 1.0);
        }
    }

    #[test]
    fn the_ratio_is_the_share_of_traces() {
        let mut dice = fastrand::Rng::with_seed(7);
        let sampled = (0..10_000).filter(|_| Sampler::Ratio.samples(0.1, dice.u128(1..), None)).count();
        assert!((850..1_150).contains(&sampled), "{sampled}");
    }
}
