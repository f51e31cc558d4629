//! Metrics of dead letters that their topic does not accept as they are.

use crate::dead_letter::headers::LetterPart;
use crate::telemetry::{Counter, Family, at_zero, metrics};

metrics! {
    /// Metrics of dead letters.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Dead letters written without a part that their topic did not accept.
        cut: Family<LetterPart, Counter> = "halley_dead_letters_cut" in at_zero(Family::default());
        /// Dead letters that their topic permanently refused: their records are settled and lost.
        lost: Counter = "halley_dead_letters_lost";
    }
}

impl Metrics {
    pub(super) fn cut(&self, part: LetterPart) {
        self.cut.get_or_create(&part).inc();
    }

    pub(super) fn lost(&self) {
        self.lost.inc();
    }
}
