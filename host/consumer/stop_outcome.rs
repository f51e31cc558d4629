//! How a consumer ended, and what it leaves to the next owner of its partitions.

/// How the consumer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// All started work is settled and committed.
    Drained,
    /// Some records will be delivered again.
    Incomplete(Leftover),
    /// Kafka has fenced this consumer, for example because another process took its
    /// `[kafka] instance`. Records in flight are delivered again.
    Fenced,
    /// The client did not close in time; settled offsets may not be committed.
    TimedOut,
}

/// What a stop has left unfinished; these records are delivered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Records that were not finished when the grace period ended.
    pub unfinished: usize,
    /// Records that were not finished when their partitions were revoked during the stop.
    pub revoked: usize,
    /// Partitions that are settled further than Kafka has confirmed.
    pub uncommitted: usize,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unfinished, revoked, uncommitted } = self;
        let mut parts = Vec::new();
        if *unfinished > 0 {
            parts.push(format!("at the end of the grace period {unfinished} records were not finished"));
        }
        if *revoked > 0 {
            parts.push(format!("{revoked} records were not finished when their partitions were revoked"));
        }
        if *uncommitted > 0 {
            parts.push(format!("kafka did not confirm the last offsets of {uncommitted} partitions"));
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_its_cause() {
        let says = |leftover: Leftover| leftover.to_string();
        let grace = Leftover { unfinished: 3, ..Leftover::default() };
        assert_eq!(says(grace), "at the end of the grace period 3 records were not finished");
        let revoked = Leftover { revoked: 2, ..Leftover::default() };
        assert_eq!(says(revoked), "2 records were not finished when their partitions were revoked");
        let all = Leftover { uncommitted: 1, ..grace };
        assert!(says(all).ends_with("; kafka did not confirm the last offsets of 1 partitions"), "{all}");
    }
}
