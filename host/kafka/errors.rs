//! Describes librdkafka's configuration errors without the secrets that they may contain.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::mistake::{Mistake, mistake};

/// The error without the property's value. librdkafka's own text contains the value, which may be a
/// password, even if the property's name is misspelt.
pub(crate) fn describe(error: &KafkaError) -> String {
    let KafkaError::ClientConfig(kind, why, key, _) = error else { return error.to_string() };
    match kind {
        RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => format!("librdkafka knows no property `{key}`"),
        // These two texts contain only librdkafka's own names and numbers; others contain the value.
        _ if why.contains("outside allowed range") || why.contains("not supported in this build") => {
            why.trim().to_owned()
        }
        _ => format!("`{key}` has an invalid value; see librdkafka's list of properties"),
    }
}

/// What is wrong with the configuration of a client that could not be created.
pub(crate) fn mistake_of(error: &KafkaError) -> Mistake {
    let mistake = mistake!("kafka.properties", ": {}", describe(error)).and("kafka");
    match error {
        KafkaError::ClientConfig(_, _, property, _) => mistake.at(property),
        _ => mistake,
    }
}

/// The error of a client that could not be created, described by [`describe`].
pub(crate) fn refused(error: KafkaError) -> anyhow::Error {
    anyhow::anyhow!(describe(&error))
}
