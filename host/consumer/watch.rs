//! Asks Kafka every few seconds whether the topics are still the ones that are read.
//!
//! A topic that was deleted and created again may have more records than the old one by the time
//! librdkafka looks: then no offset goes back, and the first records of the new one would be passed
//! over (librdkafka says so itself, in `rd_kafka_topic_metadata_update`). They come late then, and
//! out of their order, but they come.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tracing::debug;

use crate::consumer::context::Context;
use crate::kafka::TopicQuestion;

/// How often.
const EVERY: Duration = Duration::from_secs(5);
/// How long Kafka may take.
const ANSWER: Duration = Duration::from_secs(10);

/// The question that is on its way, and when the next one is due.
pub(super) struct TopicWatch<'a> {
    consumer: &'a BaseConsumer<Context>,
    question: Option<TopicQuestion<'a>>,
    next: Instant,
}

impl<'a> TopicWatch<'a> {
    pub(super) fn new(consumer: &'a BaseConsumer<Context>) -> Self {
        Self { consumer, question: None, next: Instant::now() + EVERY }
    }

    /// Takes an answer, or asks when it is time. Never waits.
    pub(super) fn look(&mut self, now: Instant) {
        let context = self.consumer.context();
        if let Some(question) = &self.question {
            let Some(answer) = question.answer(Duration::ZERO) else { return };
            match answer {
                Ok(topics) => context.topics_are(&topics),
                Err(error) => debug!(%error, "kafka does not describe its topics"),
            }
            self.question = None;
        } else if now >= self.next {
            self.next = now + EVERY;
            let topics = context.partitions().topics();
            let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
            if !names.is_empty() {
                self.question = Some(TopicQuestion::ask(self.consumer.client(), &names, ANSWER));
            }
        }
    }
}
