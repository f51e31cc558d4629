//! Explains errors of the consumer group to an operator. Pure.

use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::Config;

/// The cause and remedy of an error of the group or its topics; `None` for transient errors.
pub(super) fn describe(code: RDKafkaErrorCode, config: &Config) -> Option<String> {
    use RDKafkaErrorCode::{
        ClusterAuthorizationFailed, GroupAuthorizationFailed, GroupMaxSizeReached, InconsistentGroupProtocol,
        InvalidGroupId, InvalidSessionTimeout, TopicAuthorizationFailed, UnknownTopic,
        UnknownTopicOrPartition, UnsupportedAssignor, UnsupportedFeature, UnsupportedVersion,
    };
    let (group, topics) = (&config.group, config.topics.join("`, `"));
    let why = match code {
        GroupAuthorizationFailed => format!(
            "not authorized for the consumer group `{group}`; grant the gateway's user READ on the group"
        ),
        TopicAuthorizationFailed => {
            format!("not authorized for a topic of `{topics}`; grant the gateway's user READ and DESCRIBE on the topics")
        }
        ClusterAuthorizationFailed => "not authorized on the cluster; grant the gateway's user the operation that the brokers' log names".into(),
        UnknownTopicOrPartition | UnknownTopic => {
            format!("a topic of `{topics}` does not exist; create it; the gateway looks for it again every few seconds")
        }
        InconsistentGroupProtocol => format!(
            "the group `{group}` has members with another protocol or assignment strategy; stop them, or set `group.protocol` or `partition.assignment.strategy` in [kafka.properties] to theirs"
        ),
        InvalidSessionTimeout => format!(
            "the brokers refuse `[kafka] session_timeout` = {}; they allow 6s to 30min, unless `group.min.session.timeout.ms` and `group.max.session.timeout.ms` differ",
            humantime::format_duration(config.session_timeout)
        ),
        GroupMaxSizeReached => format!("the group `{group}` is full (`group.max.size` of the brokers)"),
        InvalidGroupId => format!("`{group}` is not a valid group name"),
        UnsupportedVersion | UnsupportedFeature | UnsupportedAssignor => {
            "the brokers do not support the request; check `group.protocol` and `group.remote.assignor` in [kafka.properties]".into()
        }
        _ => return None,
    };
    Some(format!("{why} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_their_remedy() {
        let config = Config::default();
        let of = |code| describe(code, &config).unwrap_or_default();
        assert!(of(RDKafkaErrorCode::GroupAuthorizationFailed).contains("READ on the group"));
        assert!(of(RDKafkaErrorCode::TopicAuthorizationFailed).contains("`push`"));
        assert!(of(RDKafkaErrorCode::InvalidSessionTimeout).contains("session_timeout` = 30s"));
        assert!(of(RDKafkaErrorCode::InconsistentGroupProtocol).contains("group.protocol"));
        assert_eq!(describe(RDKafkaErrorCode::RebalanceInProgress, &config), None, "transient");
    }
}
