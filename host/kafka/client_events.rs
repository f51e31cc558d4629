//! Logs librdkafka's events in the gateway's words, throttled.
//!
//! librdkafka reports every failed connection attempt several times a second, in its log and as
//! events of each client. All of that is logged at `debug`; what an operator has to know is logged
//! occasionally, with a remedy.

use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use crate::telemetry::LogThrottle;

/// How often the same event is logged.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// Logs the events of one client.
pub(crate) struct ClientEvents {
    /// The client's name in the log: `consumer`, `producer`.
    client: &'static str,
    away: LogThrottle,
    other: LogThrottle,
    last_failure: Mutex<Option<String>>,
}

impl ClientEvents {
    pub(crate) fn new(client: &'static str) -> Self {
        let throttle = || LogThrottle::new(1, REPEAT_AFTER);
        Self { client, away: throttle(), other: throttle(), last_failure: Mutex::default() }
    }

    /// Handles an event of the client. Returns whether it means that no broker is reachable.
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
                        "kafka unreachable: no broker answers; retrying; check `[kafka] brokers` and that they run"
                    );
                }
                return true;
            }
            // The code of a fatal error is that of its cause.
            Some(Fatal | FencedInstanceId) => {
                error!(client = self.client, reason, "kafka fenced this client");
            }
            Some(BrokerTransportFailure | Resolve) => self.failed(reason),
            Some(Authentication | SSL | SaslAuthenticationFailed | UnsupportedSASLMechanism) => {
                self.failed(reason);
                if let Some(held_back) = self.other.admit() {
                    error!(
                        client = self.client,
                        reason,
                        held_back,
                        "kafka refuses the login or the connection; check `security.protocol`, `sasl.*` and `ssl.*` in [kafka.properties]"
                    );
                }
            }
            _ => {
                if let Some(held_back) = self.other.admit() {
                    warn!(client = self.client, %error, reason, held_back, "kafka reports an error; continuing");
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

/// Logs a line of librdkafka's log. Important ones also arrive as events.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    debug!(?level, facility, message, "librdkafka");
}

/// Receives the result of writing a record.
pub(super) type ResultSender = Box<oneshot::Sender<Result<(), KafkaError>>>;

/// The producer's side of librdkafka's callbacks.
pub(super) struct ProducerContext(ClientEvents);

impl ProducerContext {
    pub(super) fn new() -> Self {
        Self(ClientEvents::new("producer"))
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
    type DeliveryOpaque = ResultSender;

    fn delivery(&self, result: &DeliveryResult<'_>, result_sender: ResultSender) {
        let outcome = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        // The caller may no longer wait.
        let _ = result_sender.send(outcome);
    }
}
