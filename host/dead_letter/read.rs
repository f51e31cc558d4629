//! Reading the dead-letter topic from its beginning to the end that it had at the start.

use crate::dead_letter::DeadLetter;
use crate::kafka;

/// Reads dead letters. Ends by itself at the end that the topic had when it was opened. Joins no
/// group and commits nothing.
pub struct Reader {
    pub(super) records: kafka::Reader,
}

impl Reader {
    /// Finds out what there is to read. `None`: there is no such topic.
    ///
    /// # Errors
    /// When Kafka does not answer within 8 s, or refuses.
    pub async fn open(config: &kafka::Config, group: &str) -> anyhow::Result<Option<Self>> {
        let records = kafka::Reader::open(config, &config.dead_letter_topic, group).await?;
        Ok(records.map(|records| Self { records }))
    }

    /// The next dead letters, in order; none at the end.
    ///
    /// # Errors
    /// When Kafka gives nothing for 8 s.
    pub async fn read(&mut self) -> anyhow::Result<Vec<DeadLetter>> {
        Ok(self.records.read().await?.into_iter().map(DeadLetter::of).collect())
    }
}
