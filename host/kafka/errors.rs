//! What librdkafka has against a configuration, without the secrets that may stand in it.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

/// An error without the value of the property that it is about, which librdkafka's own text shows, also
/// where the property is only misspelt and the value a password.
pub(crate) fn describe(error: &KafkaError) -> String {
    let KafkaError::ClientConfig(kind, why, key, _) = error else { return error.to_string() };
    match kind {
        RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => format!("librdkafka knows no property `{key}`"),
        // These two show numbers and names of librdkafka's own, others the value.
        _ if why.contains("outside allowed range") || why.contains("not supported in this build") => {
            why.trim().to_owned()
        }
        _ => format!("`{key}` does not take this value; see librdkafka's list of properties"),
    }
}

/// A refusal to make a client, as [`describe`] tells it.
pub(crate) fn refused(error: KafkaError) -> anyhow::Error {
    anyhow::anyhow!(describe(&error))
}
