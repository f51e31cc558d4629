//! A policy under test, without its environment: no Kafka, no Redis, no other policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::cli::message_spec::MessageSpec;
use crate::cli::plugin::author::answer::PolicyAnswer;
use crate::cli::plugin::author::project::CallLimits;
use crate::cli::plugin::author::question::{OfflineSpec, RoomSpec};
use crate::cli::runtime;
use crate::policy::{
    Chain, Fraction, HookKind, OnError, PluginConfig, Policies, ProblemKind, QuarantineAction,
};
use crate::time;
use crate::wasm::{Clock, Runtime, RuntimeConfig};

/// Why a policy does not start: the second half of a sentence that begins with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// It refused its configuration.
    #[error("it {0}")]
    Configuration(String),
    /// A reason that no configuration fixes.
    #[error("it {0}")]
    Other(String),
}

/// The topic of all messages here.
const TOPIC: &str = "push";

/// A policy's file. Each configuration gets a fresh instance with fresh state.
pub(super) struct PluginUnderTest {
    policies: Arc<Policies>,
    runtime: tokio::runtime::Runtime,
    clock: Clock,
    file: PathBuf,
    began: usize,
    metrics: Registry,
    limits: CallLimits,
}

/// One instance with its own state.
pub(super) struct TestInstance {
    chain: Chain,
    clock: Clock,
    asked: i64,
}

impl PluginUnderTest {
    /// Loads nothing yet: a policy is loaded with its first configuration, into a runtime that is
    /// created with `engine`.
    pub(super) fn new(file: &Path, limits: CallLimits, engine: RuntimeConfig) -> anyhow::Result<Self> {
        let clock = Clock::fixed();
        let config = RuntimeConfig { clock: clock.clone(), ..engine };
        let mut metrics = Registry::default();
        let engine = Runtime::with(&mut metrics, config)?;
        let policies = Policies::start(engine, &[])?;
        Ok(Self { policies, runtime: runtime()?, clock, file: file.to_owned(), began: 0, metrics, limits })
    }

    /// Starts with this configuration and fresh state.
    ///
    /// # Errors
    /// Why a gateway would refuse it.
    pub(super) fn with(&mut self, config: &Value) -> Result<TestInstance, StartError> {
        // State belongs to a name: a new name has none.
        self.began += 1;
        let name = format!("policy-{}", self.began);
        let mut plugin = PluginConfig::new(name, &self.file);
        plugin.config = config.clone();
        plugin.deadline = *self.limits.deadline;
        // Every failure must be reported, whatever the hook.
        plugin.on_error = OnError::Stall.into();
        plugin.quarantine.action = QuarantineAction::Never;
        // The budget must not skip inputs.
        plugin.time_budget = Fraction(1.0);
        let replaced = self.runtime.block_on(self.policies.replace(vec![plugin]));
        replaced.map_err(|refused| {
            let of_configuration = [ProblemKind::Configuration, ProblemKind::Settings];
            let is_refusal = refused.problems.iter().any(|one| of_configuration.contains(&one.kind));
            let reasons: Vec<String> = refused.problems.into_iter().map(|problem| problem.message).collect();
            let why = reasons.join("; ");
            if is_refusal { StartError::Configuration(why) } else { StartError::Other(why) }
        })?;
        let chain = self.policies.current().chain();
        self.clock.set(time::to_ms(SystemTime::now()));
        Ok(TestInstance { chain, clock: self.clock.clone(), asked: 0 })
    }

    /// The limits on its calls.
    pub(super) fn limits(&self) -> CallLimits {
        self.limits
    }

    /// The policy's own counters and gauges, and the limits that it reached, as in `/metrics`.
    pub(super) fn numbers(&self) -> Vec<String> {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.metrics).is_err() {
            return Vec::new();
        }
        let own = |line: &&str| {
            ["halley_plugin_counter_total{", "halley_plugin_gauge{"].iter().any(|own| line.starts_with(own))
                || (line.starts_with("halley_plugin_limits_total{") && !line.ends_with(" 0"))
        };
        text.lines().filter(own).map(str::to_owned).collect()
    }
}

impl TestInstance {
    /// The outcome of a message that passes the filter and then what keeps messages.
    ///
    /// # Errors
    /// When the message is invalid, or the policy has neither hook.
    pub(super) fn filter(&mut self, message_spec: MessageSpec) -> anyhow::Result<PolicyAnswer> {
        self.wants(self.chain.set().sees_batches(), "filter` or `retention")?;
        self.set_clock(message_spec.at);
        self.asked += 1;
        let message = message_spec.into_message(TOPIC, self.asked)?;
        Ok(match self.chain.filter(TOPIC, 0, vec![message.clone()]) {
            Ok(filtered) => {
                let filtered = filtered.first().context("a message has a verdict")?;
                PolicyAnswer::of_filter(&message, filtered)
            }
            Err(stalled) => PolicyAnswer::failed(stalled.error),
        })
    }

    /// # Errors
    /// When the message is invalid, or the policy lacks this hook.
    pub(super) fn decide(&mut self, offline_spec: OfflineSpec) -> anyhow::Result<PolicyAnswer> {
        self.wants(self.chain.set().has(HookKind::Offline), "offline")?;
        self.set_clock(offline_spec.message.at);
        self.asked += 1;
        let message = offline_spec.message.into_message(TOPIC, self.asked)?;
        Ok(match self.chain.decide(&message, &[offline_spec.absent.absent()]) {
            Ok(decided) => PolicyAnswer::of_offline(decided.first().and_then(Option::as_ref)),
            Err(stalled) => PolicyAnswer::failed(stalled.error),
        })
    }

    /// # Errors
    /// When the policy lacks this hook.
    pub(super) fn regroup(&mut self, room_spec: &RoomSpec) -> anyhow::Result<PolicyAnswer> {
        self.wants(self.chain.set().has(HookKind::Grouping), "grouping")?;
        self.set_clock(room_spec.at);
        let (room, mut grouping) = room_spec.grouping();
        Ok(match self.chain.regroup(&room, &mut grouping) {
            Ok(()) => PolicyAnswer::of_grouping(&grouping),
            Err(stalled) => PolicyAnswer::failed(stalled.error),
        })
    }

    fn wants(&self, is_there: bool, hook: &str) -> anyhow::Result<()> {
        anyhow::ensure!(is_there, "the policy exports no `{hook}`; see `halley plugin inspect`");
        Ok(())
    }

    fn set_clock(&self, at: Option<SystemTime>) {
        if let Some(at) = at {
            self.clock.set(time::to_ms(at));
        }
    }
}
