//! Whether librdkafka takes a configuration, without a network.

use crate::kafka::record_writer::RecordWriter;
use crate::kafka::{Config, mistake_of, topic_reader};
use crate::mistake::Mistake;

/// Creates every client that writes records, and the one that reads dead letters.
/// [`crate::consumer`] checks the consumer.
///
/// # Errors
/// What librdkafka refuses.
pub fn verify(config: &Config) -> Result<(), Mistake> {
    RecordWriter::batching(config).map_err(|why| mistake_of(&why))?;
    RecordWriter::unbatched(config).map_err(|why| mistake_of(&why))?;
    topic_reader::client(config, "halley-check")
        .create::<rdkafka::consumer::BaseConsumer>()
        .map_err(|why| mistake_of(&why))?;
    Ok(())
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
