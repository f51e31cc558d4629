//! What librdkafka has to say, in the gateway's own words and not more often than people read.
//!
//! librdkafka reports every failed connection attempt several times a second, through its log
//! and as events of each client. Here all of that is `debug`; what an operator has to know is
//! said once in a while, with a remedy.

use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use crate::telemetry::LogThrottle;

/// How often the same thing is said again.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// Tells of one client's troubles.
pub(crate) struct Voice {
    /// The client, as an operator knows it: `consumer`, `producer`.
    client: &'static str,
    away: LogThrottle,
    other: LogThrottle,
    last_failure: Mutex<Option<String>>,
}

impl Voice {
    pub(crate) fn new(client: &'static str) -> Self {
        let throttle = || LogThrottle::new(1, REPEAT_AFTER);
        Self { client, away: throttle(), other: throttle(), last_failure: Mutex::default() }
    }

    /// An event of the client. Returns whether it means that no broker answers.
    pub(crate) fn event(&self, error: &KafkaError, reason: &str) -> bool {
        debug!(client = self.client, %error, reason, "kafka client event");
        use RDKafkaErrorCode::{
            AllBrokersDown, Authentication, BrokerTransportFailure, Fatal, FencedInstanceId, Resolve, SSL,
            SaslAuthenticationFailed, UnsupportedSASLMechanism,
        };
        match error.rdkafka_error_code() {
            Some(AllBrokersDown) => {
                if self.away.admit().is_some() {
                    let reason = self.last_failure().unwrap_or_else(|| reason.to_owned());
                    error!(
                        client = self.client,
                        reason,
                        "no kafka broker answers; records wait there; check `[kafka] brokers` and that they run"
                    );
                }
                return true;
            }
            // librdkafka names the reason of a fatal error in its place.
            Some(Fatal | FencedInstanceId) => {
                error!(client = self.client, reason, "kafka has shut this client out for good");
            }
            Some(BrokerTransportFailure | Resolve) => self.failed(reason),
            Some(Authentication | SSL | SaslAuthenticationFailed | UnsupportedSASLMechanism) => {
                self.failed(reason);
                if let Some(held_back) = self.other.admit() {
                    error!(
                        client = self.client,
                        reason,
                        held_back,
                        "kafka refuses the login or the connection; check `security.protocol`, `sasl.*` and `ssl.*` of [kafka.properties]"
                    );
                }
            }
            _ => {
                if let Some(held_back) = self.other.admit() {
                    warn!(client = self.client, %error, reason, held_back, "kafka reports an error; going on");
                }
            }
        }
        false
    }

    fn failed(&self, reason: &str) {
        let mut last = self.last_failure.lock();
        *last = Some(reason.to_owned());
    }

    /// Why the last connection failed.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().clone()
    }
}

/// A line of librdkafka's own log. What matters of it comes as an event as well.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    debug!(?level, facility, message, "librdkafka");
}

/// Who waits for what became of a record.
pub(super) type Waiting = Box<oneshot::Sender<Result<(), KafkaError>>>;

/// The producer's side of librdkafka's callbacks.
pub(super) struct ProducerContext(Voice);

impl ProducerContext {
    pub(super) fn new() -> Self {
        Self(Voice::new("producer"))
    }
}

impl ClientContext for ProducerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.event(&error, reason);
    }
}

impl rdkafka::producer::ProducerContext for ProducerContext {
    type DeliveryOpaque = Waiting;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Waiting) {
        let outcome = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        // Whoever waited may have lost interest.
        let _ = waiting.send(outcome);
    }
}
