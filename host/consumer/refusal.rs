//! Why Kafka does not let this client do its work, in an operator's words. Pure.

use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::Config;

/// What to do about an error of the group or of its topics; `None` for errors that pass.
pub(super) fn of_group(code: RDKafkaErrorCode, config: &Config) -> Option<String> {
    use RDKafkaErrorCode::{
        ClusterAuthorizationFailed, GroupAuthorizationFailed, GroupMaxSizeReached, InconsistentGroupProtocol,
        InvalidGroupId, InvalidSessionTimeout, TopicAuthorizationFailed, UnknownTopic,
        UnknownTopicOrPartition, UnsupportedAssignor, UnsupportedFeature, UnsupportedVersion,
    };
    let (group, topics) = (&config.group, config.topics.join("`, `"));
    let why = match code {
        GroupAuthorizationFailed => format!(
            "no right on the consumer group `{group}`; grant its user READ on the group"
        ),
        TopicAuthorizationFailed => {
            format!("no right on a topic of `{topics}`; grant its user READ and DESCRIBE on the topics")
        }
        ClusterAuthorizationFailed => "no right on the cluster; grant its user what the brokers' log names".into(),
        UnknownTopicOrPartition | UnknownTopic => {
            format!("a topic of `{topics}` does not exist; create it, it is looked for again every few seconds")
        }
        InconsistentGroupProtocol => format!(
            "the group `{group}` has members with another protocol or assignment strategy; stop them, or set `group.protocol` or `partition.assignment.strategy` of [kafka.properties] as they have it"
        ),
        InvalidSessionTimeout => format!(
            "the brokers refuse `[kafka] session_timeout` = {}; they allow 6s to 30min unless `group.min.session.timeout.ms` and `group.max.session.timeout.ms` say otherwise",
            humantime::format_duration(config.session_timeout)
        ),
        GroupMaxSizeReached => format!("the group `{group}` is full (`group.max.size` of the brokers)"),
        InvalidGroupId => format!("`{group}` is no name for a group"),
        UnsupportedVersion | UnsupportedFeature | UnsupportedAssignor => {
            "the brokers do not support what is asked of them; look at `group.protocol` and `group.remote.assignor` of [kafka.properties]".into()
        }
        _ => return None,
    };
    Some(format!("{why} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_named_with_its_remedy() {
        let config = Config::default();
        let of = |code| of_group(code, &config).unwrap_or_default();
        assert!(of(RDKafkaErrorCode::GroupAuthorizationFailed).contains("READ on the group"));
        assert!(of(RDKafkaErrorCode::TopicAuthorizationFailed).contains("`push`"));
        assert!(of(RDKafkaErrorCode::InvalidSessionTimeout).contains("session_timeout` = 30s"));
        assert!(of(RDKafkaErrorCode::InconsistentGroupProtocol).contains("group.protocol"));
        assert_eq!(of_group(RDKafkaErrorCode::RebalanceInProgress, &config), None, "that passes");
    }
}
