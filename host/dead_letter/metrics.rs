//! What is counted of dead letters that their topic does not take as they are.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What was left out of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Value,
    Key,
    Headers,
}

impl Part {
    const ALL: [Self; 3] = [Self::Value, Self::Key, Self::Headers];

    fn label(self) -> PartLabel {
        let part = match self {
            Self::Value => "value",
            Self::Key => "key",
            Self::Headers => "headers",
        };
        PartLabel { part }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

/// The dead letters' metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    cut: Family<PartLabel, Counter>,
    lost: Counter,
}

impl Metrics {
    /// Makes and registers them; every series is there from the start.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { cut: Family::default(), lost: Counter::default() };
        for part in Part::ALL {
            drop(metrics.cut.get_or_create(&part.label()));
        }
        registry.register(
            "halley_dead_letters_cut",
            "Dead letters that lost a part because their topic does not take them whole",
            metrics.cut.clone(),
        );
        registry.register(
            "halley_dead_letters_lost",
            "Dead letters that their topic refused for good: their records are settled and kept nowhere",
            metrics.lost.clone(),
        );
        metrics
    }

    pub(super) fn cut(&self, part: Part) {
        self.cut.get_or_create(&part.label()).inc();
    }

    pub(super) fn lost(&self) {
        self.lost.inc();
    }
}
