//! Topic administration while a topic is being read.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::FutureProducer;
use rdkafka::{Offset, TopicPartitionList};

use super::{ANSWER, Kafka, client};
use crate::support::eventually;

impl Kafka {
    /// Deletes a topic and creates one of the same name.
    pub async fn recreate_topic(&self, name: &str, partitions: i32) {
        self.delete_topic(name).await;
        self.create_topic(name, partitions).await;
    }

    /// Deletes a topic, and waits until it is gone.
    pub async fn delete_topic(&self, name: &str) {
        let deleted = self.admin().delete_topics(&[name], &options()).await.expect("the broker answers");
        for result in deleted {
            result.unwrap_or_else(|(topic, error)| panic!("{topic} cannot be deleted: {error}"));
        }
        let consumer: BaseConsumer = client(self.brokers()).create().expect("a consumer");
        eventually(format!("{name} to be gone"), ANSWER, async || {
            let metadata = consumer.fetch_metadata(None, ANSWER).expect("the broker answers");
            (!metadata.topics().iter().any(|topic| topic.name() == name)).then_some(())
        })
        .await;
    }

    /// Adds partitions, up to this many.
    pub async fn add_partitions(&self, topic: &str, partitions: usize) {
        let wanted = NewPartitions::new(topic, partitions);
        let made = self.admin().create_partitions([&wanted], &options()).await.expect("the broker answers");
        for result in made {
            result.unwrap_or_else(|(topic, error)| panic!("{topic} gets no partitions: {error}"));
        }
    }

    /// Deletes the records before these offsets, as retention does.
    pub async fn delete_records(&self, topic: &str, before: &BTreeMap<i32, i64>) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in before {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).expect("an offset");
        }
        let deleted = self.admin().delete_records(&list, &options()).await.expect("the broker answers");
        for element in deleted.elements() {
            element.error().expect("records can be removed");
        }
    }

    /// A producer with custom settings, such as `compression.codec`.
    pub fn producer_with(&self, settings: &[(&str, &str)]) -> FutureProducer {
        super::producer(self.brokers(), settings)
    }

    pub(super) fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(self.brokers()).create().expect("an admin client")
    }
}

pub(super) fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER))
}
