//! librdkafka's built-in broker, for the demo: the real protocol on a loopback port, nothing
//! installed. It keeps about 5 MiB a partition and deletes the oldest without a word, so it
//! is no place for real traffic.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A one-node Kafka inside this process. It ends when it is dropped.
pub struct BuiltinBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl BuiltinBroker {
    /// Starts it with these topics.
    ///
    /// # Errors
    /// When librdkafka cannot start it, for instance for want of a port.
    pub fn start(topics: &[(&str, i32)]) -> anyhow::Result<Self> {
        let cluster = MockCluster::new(1)?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1)?;
        }
        Ok(Self { cluster })
    }

    /// Where clients find it, as `[kafka] brokers` has it.
    pub fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}
