//! The metadata committed with an offset: the incarnation of the topic that it belongs to.
//!
//! `halley/1 <topic id, 32 hexadecimal digits, or -> <partitions>`. Offsets without it (committed
//! by another program, by a reset, or by an older gateway) are trusted.

use std::fmt;

use crate::kafka::TopicId;

const VERSION: &str = "halley/1";

/// The metadata of an offset that a gateway commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitMetadata {
    /// The topic's id, where brokers have them.
    pub(crate) topic: Option<TopicId>,
    /// `[kafka] start` applies to partitions below this number: those that the topic had when the
    /// group first consumed it. Others were added later.
    pub(crate) initial_partitions: i32,
}

impl CommitMetadata {
    /// Parses metadata that any program may have written.
    pub(crate) fn parse(metadata: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(metadata).ok()?;
        let mut words = text.split(' ');
        let (version, topic, initial_partitions) = (words.next()?, words.next()?, words.next()?);
        let topic = if topic == "-" { None } else { Some(TopicId::parse(topic)?) };
        let initial_partitions = initial_partitions.parse().ok()?;
        (version == VERSION && words.next().is_none()).then_some(Self { topic, initial_partitions })
    }

    /// Whether it certainly belongs to another incarnation than the one with this id.
    pub(crate) fn is_of_other_topic(self, id: Option<TopicId>) -> bool {
        matches!((self.topic, id), (Some(mine), Some(id)) if mine != id)
    }
}

impl fmt::Display for CommitMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.topic {
            Some(topic) => write!(f, "{VERSION} {topic} {}", self.initial_partitions),
            None => write!(f, "{VERSION} - {}", self.initial_partitions),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metadata_is_parsed_as_it_was_written() {
        for topic in [None, TopicId::new(7)] {
            let metadata = CommitMetadata { topic, initial_partitions: 12 };
            assert_eq!(CommitMetadata::parse(metadata.to_string().as_bytes()), Some(metadata));
        }
        let written = CommitMetadata { topic: TopicId::new(7), initial_partitions: 4 };
        assert_eq!(written.to_string(), "halley/1 00000000000000000000000000000007 4");
    }

    #[test]
    fn only_two_different_ids_are_two_incarnations() {
        let (one, other) = (TopicId::new(1), TopicId::new(2));
        let of_another =
            |mine, now| CommitMetadata { topic: mine, initial_partitions: 0 }.is_of_other_topic(now);
        assert!(of_another(one, other));
        assert!(!of_another(one, one) && !of_another(None, other) && !of_another(one, None));
    }

    proptest! {
        #[test]
        fn foreign_metadata_is_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(CommitMetadata::parse(&bytes), None);
        }
    }
}
