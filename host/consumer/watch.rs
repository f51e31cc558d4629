//! Asks Kafka every few seconds whether the consumed topics were recreated.
//!
//! By the time librdkafka notices, a recreated topic may have more records than the old one. Then
//! no offset regresses, and the first records of the new log would be skipped (a known limitation,
//! see `rd_kafka_topic_metadata_update`). With this check they arrive late and out of order, but
//! they arrive.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tracing::debug;

use crate::consumer::context::Context;
use crate::kafka::DescribeTopics;

/// How often topics are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The pending request, and when the next one is due.
pub(super) struct TopicWatch<'a> {
    consumer: &'a BaseConsumer<Context>,
    question: Option<DescribeTopics<'a>>,
    next: Instant,
}

impl<'a> TopicWatch<'a> {
    pub(super) fn new(consumer: &'a BaseConsumer<Context>) -> Self {
        Self { consumer, question: None, next: Instant::now() + CHECK_INTERVAL }
    }

    /// Handles a response, or sends a request when one is due. Never blocks.
    pub(super) fn update(&mut self, now: Instant) {
        let context = self.consumer.context();
        if let Some(question) = &self.question {
            let Some(answer) = question.answer(Duration::ZERO) else { return };
            match answer {
                Ok(topics) => context.update_topics(&topics),
                Err(error) => debug!(%error, "kafka did not describe the topics"),
            }
            self.question = None;
        } else if now >= self.next {
            self.next = now + CHECK_INTERVAL;
            let topics = context.partitions().topics();
            let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
            if !names.is_empty() {
                self.question = Some(DescribeTopics::ask(self.consumer.client(), &names, REQUEST_TIMEOUT));
            }
        }
    }
}
