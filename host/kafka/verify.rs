//! Whether librdkafka takes a configuration, without a network; and what it has against one, without
//! the secrets that may stand in it.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::kafka::sender::Sender;
use crate::kafka::{Config, read};

/// Makes every client that writes records, and the one that reads dead letters. The consumer's own is
/// for [`crate::consumer`] to try.
///
/// # Errors
/// What librdkafka refuses.
pub fn verify(config: &Config) -> anyhow::Result<()> {
    Sender::batching(config).map_err(refused)?;
    Sender::one_by_one(config).map_err(refused)?;
    read::client(config, "halley-check").create::<rdkafka::consumer::BaseConsumer>().map_err(refused)?;
    Ok(())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_key_and_not_the_value() {
        for (key, value) in [
            ("sasl.passwrod", "hunter2"),
            ("security.protocol", "hunter2"),
            ("max.poll.interval.ms", "hunter2"),
            ("builtin.features", "hunter2"),
            ("topic.blacklist", "^hunter2["),
        ] {
            let config =
                Config { properties: [(key.to_owned(), value.to_owned())].into(), ..Config::default() };
            let said = format!("{:#}", verify(&config).expect_err(key));
            assert!(said.contains(key) && !said.contains("hunter2"), "{said}");
        }
    }
}
