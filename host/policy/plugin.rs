//! One version of a plugin with its settings: starts its instances, and holds its statistics.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::decision::PluginVersion;
use crate::membership::{Grouping, Membership};
use crate::message::{Audience, Message, MessageId, Origin, Record};
use crate::policy::config::PluginConfig;
use crate::policy::rollout::config::Then;
use crate::policy::rollout::judge::Tally;
use crate::policy::rollout::quarantine::{Alarm, Alarms, Failures};
use crate::wasm::Runtime;
use crate::wasm::failure::Failure;
use crate::wasm::host::Services;
use crate::wasm::instance::{Instance, Limits, Reserved};
use crate::wasm::module::Module;
use crate::wasm::room::Room;
use crate::wasm::shared::Session;

/// A prepared plugin. Sets share the plugins that did not change between them.
pub(super) struct Plugin {
    pub(super) config: PluginConfig,
    pub(super) version: PluginVersion,
    pub(super) module: Arc<Module>,
    pub(super) services: Arc<Services>,
    pub(super) failures: Failures,
    /// Its statistics, for comparison with a candidate.
    pub(super) tally: Tally,
    /// Whether no other version can replace it.
    is_without_alternative: AtomicBool,
    /// Where it reports that it has failed too often.
    alarms: Arc<Alarms>,
    /// Keeps the epochs behind the deadlines running.
    runtime: Arc<Runtime>,
}

impl Plugin {
    /// Turns it into a shadow, with state and metrics of its own.
    pub(super) fn shadow(self) -> Self {
        Self { services: Arc::new(self.services_of_a_shadow()), ..self }
    }

    fn services_of_a_shadow(&self) -> Services {
        let state = self.runtime.states.of(&format!("{}\0shadow", self.config.name));
        let metrics = self.runtime.metrics.plugin(&self.version);
        let (config, clock) = (self.config.config.to_string(), self.runtime.clock.clone());
        Services { silent: true, ..Services::new(self.version.clone(), config, metrics, state, clock) }
    }

    /// A plugin with these settings; not called yet.
    pub(super) fn new(
        runtime: &Arc<Runtime>,
        alarms: &Arc<Alarms>,
        config: &PluginConfig,
        module: Arc<Module>,
    ) -> Self {
        let name = Arc::from(config.name.as_str());
        let version = PluginVersion { name, hash: module.hash[..12].into() };
        let metrics = runtime.metrics.plugin(&version);
        let state = runtime.states.of(&config.name);
        let (settings, clock) = (config.config.to_string(), runtime.clock.clone());
        let services = Services::new(version.clone(), settings, metrics, state, clock);
        Self {
            config: config.clone(),
            version,
            module,
            services: Arc::new(services),
            failures: Failures::new(config.quarantine.clone()),
            is_without_alternative: AtomicBool::new(config.quarantine.then == Then::Never),
            tally: Tally::default(),
            alarms: Arc::clone(alarms),
            runtime: Arc::clone(runtime),
        }
    }

    /// Starts an instance.
    pub(super) fn start(&self) -> Result<Instance, Failure> {
        Instance::start(&self.module, &self.services, self.limits())
    }

    /// Allocates the memory of an instance without starting it.
    pub(super) fn reserve(&self) -> Result<Reserved, Failure> {
        Reserved::new(&self.module, &self.services, self.limits())
    }

    fn limits(&self) -> Limits {
        Limits { deadline: self.config.deadline, memory: self.config.memory }
    }

    /// Starts an instance and calls every hook with empty input.
    pub(super) fn try_out(&self) -> Result<(), Failure> {
        let mut instance = self.start()?;
        let trial = |hook: &'static str| {
            move |failure: Failure| Failure {
                message: format!("failed its trial call of {hook}: {failure}"),
                ..failure
            }
        };
        instance.filter("trial", 0, &[]).map_err(trial("filter"))?;
        let nobody = Grouping::new(Arc::new(Membership::default()));
        let room = Room::of(&nobody, self.module.hooks.columns());
        if let Some(answer) = instance.regroup("trial", &room).map_err(trial("grouping"))? {
            room.check(answer).map_err(trial("grouping"))?;
        }
        instance.decide(&trial_message(), &[]).map_err(trial("offline"))?;
        Ok(())
    }

    /// Raises an alarm: it failed too often, or for too long.
    pub(super) fn raise_alarm(&self, limit: String, last: &Failure) {
        let (plugin, hash) = (self.config.name.clone(), self.module.hash.clone());
        self.alarms.raise(Alarm { plugin, hash, limit, last: last.to_string() });
    }

    /// Enforces the time budget from now on, because no other version can replace it.
    pub(super) fn enforce_time_budget(&self) {
        self.is_without_alternative.store(true, Relaxed);
    }

    /// Whether its `on_error` decides while it exceeds its budget. While another version may still
    /// replace it, it is called until the replacement is active.
    pub(super) fn is_time_a_budget(&self) -> bool {
        self.is_without_alternative.load(Relaxed)
    }

    /// How many workers do not call it for now.
    pub(super) fn workers_over_budget(&self) -> usize {
        usize::try_from(self.services.metrics.over_budget().get()).unwrap_or_default()
    }

    /// Connects an instance with the state that gateways share.
    pub(super) fn session(&self) -> Session {
        let most = usize::try_from(self.config.max_shared_state.as_u64()).unwrap_or(usize::MAX);
        Session::new(self.runtime.states.account_of(&self.config.name), most)
    }

    /// The file it was read from.
    pub(super) fn path(&self) -> &Path {
        &self.config.path
    }
}

fn trial_message() -> Message {
    let origin = Origin { topic: "trial".into(), partition: 0, offset: 0 };
    let record =
        Record { origin, timestamp_ms: None, key: None, value: None, headers: Vec::new(), trusted: false };
    Message {
        id: MessageId::from("trial/0/0"),
        record: Arc::new(record),
        audience: Audience::Room("trial".into()),
        operation: 0,
        body: bytes::Bytes::new(),
    }
}
