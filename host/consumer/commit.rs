//! Commits the stored offsets, and decides whether a retry can help when Kafka refuses.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Whether a retry of a failed commit can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// A later retry succeeds: the coordinator is moving, or a broker restarts.
    Later,
    /// A retry succeeds once this member has rejoined the group, which requires polling.
    AfterRejoining,
    /// No retry succeeds: the group has removed this member, or does not allow it to commit.
    None,
}

impl Hope {
    pub(super) fn of(error: &KafkaError) -> Self {
        match error.rdkafka_error_code() {
            // The request waited behind a join of the same member and carries the old generation.
            Some(RDKafkaErrorCode::IllegalGeneration) => Self::AfterRejoining,
            Some(
                RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::FencedMemberEpoch
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::OffsetMetadataTooLarge
                | RDKafkaErrorCode::InvalidCommitOffsetSize
                | RDKafkaErrorCode::UnknownGroup
                | RDKafkaErrorCode::Fatal,
            ) => Self::None,
            _ => Self::Later,
        }
    }
}

/// Commits the stored offsets, and waits for the response.
pub(super) fn commit_stored(consumer: &BaseConsumer<impl ConsumerContext>) -> Result<(), KafkaError> {
    match consumer.commit_consumer_state(CommitMode::Sync) {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_in_a_rebalance_is_tried_again_and_a_hopeless_one_is_not() {
        let hope = |code| Hope::of(&KafkaError::ConsumerCommit(code));
        assert_eq!(hope(RDKafkaErrorCode::IllegalGeneration), Hope::AfterRejoining);
        for code in [
            RDKafkaErrorCode::RebalanceInProgress,
            RDKafkaErrorCode::StaleMemberEpoch,
            RDKafkaErrorCode::NotCoordinator,
            RDKafkaErrorCode::CoordinatorLoadInProgress,
            RDKafkaErrorCode::RequestTimedOut,
            RDKafkaErrorCode::BrokerTransportFailure,
        ] {
            assert_eq!(hope(code), Hope::Later, "{code}");
        }
        for code in [RDKafkaErrorCode::UnknownMemberId, RDKafkaErrorCode::FencedInstanceId] {
            assert_eq!(hope(code), Hope::None, "{code}");
        }
    }
}
