//! Probes a comet whose breaker is open: once a second, on a separate connection, with gRPC's
//! health check. Any answer counts, even `Unimplemented`: it comes from the comet's server.
//!
//! A comet that was unreachable and answers has recovered. If it kept answering probes while calls
//! failed, only a call can show its recovery; the breaker lets one through at intervals.

use std::time::{Duration, Instant};

use crate::comets::channel::{CometClient, Dialer, GrpcRequest};
use crate::comets::grpc::CallFailure;

/// The probe interval, shortened at random so that gateways do not probe together.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct HealthProbe {
    every: Duration,
    timeout: Duration,
    /// When to probe next; `None` while the breaker is closed or a probe is in flight.
    next: Option<Instant>,
    is_open: bool,
    was_away: bool,
}

/// The result of a probe.
pub(super) struct ProbeReply {
    client: CometClient,
    result: Result<(), CallFailure>,
}

impl HealthProbe {
    /// Probes at least as often as the breaker first lets a call through.
    pub(super) fn new(breaker_open: Duration, timeout: Duration) -> Self {
        Self { every: PROBE_INTERVAL.min(breaker_open), timeout, next: None, is_open: false, was_away: false }
    }

    /// The breaker has opened. The call that opened it tells whether the comet was unreachable.
    pub(super) fn opened(&mut self, was_away: bool, now: Instant) {
        self.was_away |= was_away;
        if !self.is_open {
            self.is_open = true;
            self.next = Some(now + self.pause());
        }
    }

    /// The breaker is closed.
    pub(super) fn closed(&mut self) {
        (self.next, self.is_open, self.was_away) = (None, false, false);
    }

    /// When to probe next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A probe, if one is due.
    pub(super) fn ready(
        &mut self,
        dialer: &Dialer,
        now: Instant,
    ) -> Option<impl Future<Output = ProbeReply> + use<>> {
        self.next.filter(|next| *next <= now)?;
        self.next = None;
        let (client, timeout) = (dialer.dial(), self.timeout);
        Some(async move {
            let unanswered = || Err(CallFailure::NoAnswer(format!("no answer within {timeout:?}")));
            let asked = tokio::time::timeout(timeout, client.clone().call(GrpcRequest::health())).await;
            ProbeReply { result: asked.unwrap_or_else(|_| unanswered()), client }
        })
    }

    /// Handles the result of a probe. Returns the connection if the comet has recovered; otherwise
    /// schedules the next probe.
    pub(super) fn found(&mut self, found: ProbeReply, now: Instant) -> Option<CometClient> {
        match found.result {
            _ if !self.is_open => return None,
            Ok(()) | Err(CallFailure::Status { .. }) if self.was_away => return Some(found.client),
            Err(CallFailure::NoAnswer(_) | CallFailure::Forbidden(_)) => self.was_away = true,
            Ok(()) | Err(_) => {}
        }
        self.next = Some(now + self.pause());
        None
    }

    fn pause(&self) -> Duration {
        self.every.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comets::access::DialGate;

    fn found(result: Result<(), CallFailure>) -> ProbeReply {
        let address = "127.0.0.1:1".into();
        let (dialer, _drivers) =
            Dialer::new(&address, PROBE_INTERVAL, PROBE_INTERVAL, DialGate::open(&address), None)
                .expect("an address");
        ProbeReply { client: dialer.dial(), result }
    }

    fn away() -> CallFailure {
        CallFailure::NoAnswer("connection refused".into())
    }

    fn unimplemented() -> CallFailure {
        CallFailure::Status { code: tonic::Code::Unimplemented, text: String::new() }
    }

    #[tokio::test]
    async fn an_unreachable_comet_recovers_with_its_first_answer() {
        let (mut probe, now) = (HealthProbe::new(PROBE_INTERVAL, PROBE_INTERVAL), Instant::now());
        probe.opened(true, now);
        assert!(probe.found(found(Err(away())), now).is_none());
        assert!(probe.next().is_some_and(|next| next <= now + PROBE_INTERVAL));
        assert!(probe.found(found(Err(unimplemented())), now).is_some());
    }

    #[tokio::test]
    async fn an_answer_proves_nothing_if_it_was_always_reachable() {
        let (mut probe, now) = (HealthProbe::new(PROBE_INTERVAL, PROBE_INTERVAL), Instant::now());
        probe.opened(false, now);
        for _ in 0..3 {
            assert!(probe.found(found(Ok(())), now).is_none());
        }
        assert!(probe.found(found(Err(away())), now).is_none());
        assert!(probe.found(found(Ok(())), now).is_some(), "it was away meanwhile");
    }

    #[tokio::test]
    async fn there_are_no_probes_while_the_breaker_is_closed() {
        let (mut probe, now) = (HealthProbe::new(PROBE_INTERVAL, PROBE_INTERVAL), Instant::now());
        probe.opened(true, now);
        probe.closed();
        assert!(probe.found(found(Ok(())), now).is_none());
        assert_eq!(probe.next(), None);
    }
}
