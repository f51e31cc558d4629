//! Reads the dead-letter topic from its beginning to the end that it had at the start.

use crate::dead_letter::DeadLetter;
use crate::kafka;

/// Reads dead letters, up to the end of the topic at the time of opening. Joins no group and commits
/// nothing.
pub struct Reader {
    pub(super) records: kafka::TopicReader,
}

impl Reader {
    /// Finds out what there is to read. `None`: the topic does not exist.
    ///
    /// # Errors
    /// If Kafka does not answer within 8 s, or refuses.
    pub async fn open(config: &kafka::Config, group: &str) -> anyhow::Result<Option<Self>> {
        let records = kafka::TopicReader::open(config, &config.dead_letter_topic, group).await?;
        Ok(records.map(|records| Self { records }))
    }

    /// The next dead letters, in order; empty at the end.
    ///
    /// # Errors
    /// If Kafka returns nothing for 8 s.
    pub async fn read(&mut self) -> anyhow::Result<Vec<DeadLetter>> {
        Ok(self.records.read().await?.into_iter().map(DeadLetter::of).collect())
    }
}
