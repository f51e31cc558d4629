//! Commits what is stored, and says whether it is worth trying again when Kafka refuses.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::consumer::context::Context;

/// What a commit that failed can hope for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// It succeeds by itself a little later: a coordinator that moves, a broker that restarts.
    Later,
    /// It succeeds once this member has rejoined the group, for which it has to poll.
    AfterRejoining,
    /// The group goes on without this member, or does not let it write.
    None,
}

impl Hope {
    pub(super) fn of(error: &KafkaError) -> Self {
        match error.rdkafka_error_code() {
            // The request waited behind a join of the same member, and bears the generation before.
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

/// Commits what is stored, and waits for the answer.
pub(super) fn commit_stored(consumer: &BaseConsumer<Context>) -> Result<(), KafkaError> {
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
