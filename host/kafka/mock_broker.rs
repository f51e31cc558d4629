//! librdkafka's mock broker, for the demo: the real protocol on a loopback port, without an
//! installation. It keeps about 5 MiB per partition and silently deletes older records, so it is
//! not for real traffic.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A one-node Kafka inside this process. It stops when it is dropped.
pub struct MockBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl MockBroker {
    /// Starts it with these topics.
    ///
    /// # Errors
    /// When librdkafka cannot start it, for example because no port is free.
    pub fn start(topics: &[(&str, i32)]) -> anyhow::Result<Self> {
        let cluster = MockCluster::new(1)?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1)?;
        }
        Ok(Self { cluster })
    }

    /// Its address, in the format of `[kafka] brokers`.
    pub fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}
