//! Metrics of replays on return.

use crate::telemetry::{Counter, Family, Gauge, at_zero, label_enum, metrics};

label_enum! {
    /// How a replay ended.
    pub(super) enum ReplayOutcome as "outcome" {
        /// Everything was pushed.
        Replayed = "replayed",
        /// There was nothing to push.
        CaughtUp = "caught-up",
        /// The user was gone.
        NotConnected = "not-connected",
        /// The comet did not take a message, or the inbox could not be read. The next sweep tries again.
        Failed = "failed",
    }
}

metrics! {
    /// Metrics of replays on return.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Replays to users who returned, by outcome.
        replays: Family<ReplayOutcome, Counter> = "halley_replay_on_return" in at_zero(Family::default());
        /// Messages that were pushed to users who returned.
        pub(super) messages: Counter = "halley_replay_on_return_messages";
        /// Registrations of users that Redis published.
        pub(super) events: Counter = "halley_replay_events";
        /// Published registrations that were dropped because too many waited or Redis did not answer; a
        /// sweep follows.
        pub(super) dropped: Counter = "halley_replay_events_dropped";
        /// Sweeps over all inboxes that this gateway has completed.
        pub(super) sweeps: Counter = "halley_replay_sweeps";
        /// 1 while Redis publishes registrations to this gateway.
        pub(super) subscribed: Gauge = "halley_replay_subscribed";
    }
}

impl Metrics {
    /// Counts a replay.
    pub(super) fn ended(&self, outcome: ReplayOutcome) {
        self.replays.get_or_create(&outcome).inc();
    }
}
