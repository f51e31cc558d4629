//! Metrics of dead letters that their topic does not accept as they are.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::dead_letter::headers::LetterPart;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LetterPartLabel {
    part: LetterPart,
}

/// Metrics of dead letters.
#[derive(Clone, Debug)]
pub struct Metrics {
    cut: Family<LetterPartLabel, Counter>,
    lost: Counter,
}

impl Metrics {
    /// Creates and registers the metrics; every series exists from the start.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { cut: Family::default(), lost: Counter::default() };
        for part in LetterPart::ALL {
            drop(metrics.cut.get_or_create(&LetterPartLabel { part }));
        }
        registry.register(
            "halley_dead_letters_cut",
            "Dead letters written without a part that their topic did not accept",
            metrics.cut.clone(),
        );
        registry.register(
            "halley_dead_letters_lost",
            "Dead letters that their topic permanently refused: their records are settled and lost",
            metrics.lost.clone(),
        );
        metrics
    }

    pub(super) fn cut(&self, part: LetterPart) {
        self.cut.get_or_create(&LetterPartLabel { part }).inc();
    }

    pub(super) fn lost(&self) {
        self.lost.inc();
    }
}
