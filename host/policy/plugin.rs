//! One plugin of a set, prepared: read, compiled, checked, started once and tried.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::decision::PluginVersion;
use crate::membership::{Grouping, Membership};
use crate::message::{Audience, Message, MessageId, Origin, Record};
use crate::policy::config::PluginConfig;
use crate::policy::guest::bindings::halley::policy::types::Source;
use crate::policy::guest::failure::Failure;
use crate::policy::guest::host::{HostState, Services};
use crate::policy::guest::instance::Instance;
use crate::policy::guest::module::{self, Module};
use crate::policy::guest::questions::with_message;
use crate::policy::guest::room::Room;
use crate::policy::guest::runtime::Runtime;
use crate::policy::guest::shared::Session;
use crate::policy::intake::Arrived;
use crate::policy::trial::{Mode, Tally, Trial, TrialConfig};
use crate::policy::versions::{Alarm, Failures, QuarantineConfig, Then};

/// The file of a candidate, and how it is to be tried.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) config: TrialConfig,
    pub(super) arrived: Arrived,
    pub(super) hash: String,
}

/// A prepared plugin. Sets share the ones that did not change between them.
pub(super) struct Plugin {
    pub(super) config: PluginConfig,
    pub(super) version: PluginVersion,
    pub(super) module: Arc<Module>,
    pub(super) services: Arc<Services>,
    pub(super) failures: Failures,
    /// What it did, for comparison with a candidate.
    pub(super) tally: Tally,
    /// Whether no other version can come in its place.
    is_without_alternative: AtomicBool,
    /// A candidate beside it.
    pub(super) trial: Option<Trial>,
    /// Keeps the clock behind the deadlines running.
    runtime: Arc<Runtime>,
}

impl Plugin {
    /// Prepares a plugin from the bytes of its file, with what is already compiled where nothing
    /// changed.
    ///
    /// # Errors
    /// What is wrong with it: the second half of a sentence that begins with the plugin.
    pub(super) fn prepare(
        runtime: &Arc<Runtime>,
        config: &PluginConfig,
        bytes: &[u8],
        candidate: Option<&Candidate>,
        in_force: &[Arc<Self>],
    ) -> Result<Arc<Self>, String> {
        let hash = module::hash(bytes);
        let same_bytes = || in_force.iter().filter(|plugin| plugin.module.hash == hash);
        let unchanged = same_bytes().find(|plugin| plugin.config == *config && plugin.tries(candidate));
        if let Some(unchanged) = unchanged {
            return Ok(Arc::clone(unchanged));
        }
        let module = match same_bytes().next() {
            Some(known) => Arc::clone(&known.module),
            None => runtime.compile(&config.name, bytes)?,
        };
        let trial = candidate.map(|candidate| Self::trial(runtime, config, candidate)).transpose()?;
        let plugin = Arc::new(Self::new(runtime, config, module, trial));
        plugin.try_out().map_err(|failure| failure.message)?;
        Ok(plugin)
    }

    /// Prepares a candidate with the settings of the plugin that it may replace. It is never put
    /// in quarantine: its trial ends.
    fn trial(runtime: &Arc<Runtime>, config: &PluginConfig, candidate: &Candidate) -> Result<Trial, String> {
        let quarantine = QuarantineConfig { then: Then::Never, ..config.quarantine.clone() };
        let trial = &candidate.config;
        let own = PluginConfig { path: trial.path.clone(), trial: None, quarantine, ..config.clone() };
        let wrong = |why: String| format!("has a candidate ({}) that {why}", trial.path.display());
        let module = runtime.compile(&config.name, &candidate.arrived.bytes).map_err(wrong)?;
        let mut plugin = Self::new(runtime, &own, module, None);
        if trial.mode == Mode::Shadow {
            plugin.services = Arc::new(plugin.services_of_a_shadow());
        }
        let plugin = Arc::new(plugin);
        plugin.try_out().map_err(|failure| wrong(failure.message))?;
        Trial::begin(candidate, plugin)
    }

    /// Whether this is the candidate that it tries.
    fn tries(&self, candidate: Option<&Candidate>) -> bool {
        match (&self.trial, candidate) {
            (None, None) => true,
            (Some(trial), Some(candidate)) => {
                trial.config == candidate.config && trial.candidate.module.hash == candidate.hash
            }
            _ => false,
        }
    }

    /// What a shadow keeps and counts is not the plugin's.
    fn services_of_a_shadow(&self) -> Services {
        let state = self.runtime.states.of(&format!("{}\0shadow", self.config.name));
        let metrics = self.runtime.metrics.plugin(&self.version);
        let (config, clock) = (self.config.config.to_string(), self.runtime.clock.clone());
        Services { silent: true, ..Services::new(self.version.clone(), config, metrics, state, clock) }
    }

    fn new(runtime: &Arc<Runtime>, config: &PluginConfig, module: Arc<Module>, trial: Option<Trial>) -> Self {
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
            trial,
            runtime: Arc::clone(runtime),
        }
    }

    /// Starts an instance and calls every hook with nothing to decide.
    fn try_out(self: &Arc<Self>) -> Result<(), Failure> {
        let mut instance = Instance::start(self)?;
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
        let source = Source { topic: "trial", partition: 0 };
        with_message(&trial_message(), |message| instance.decide(source, message, &[]))
            .map_err(trial("offline"))?;
        Ok(())
    }

    /// It has failed too often, or for too long.
    pub(super) fn raise_alarm(&self, limit: String, last: &Failure) {
        let (plugin, hash) = (self.config.name.clone(), self.module.hash.clone());
        self.runtime.alarms.raise(Alarm { plugin, hash, limit, last: last.to_string() });
    }

    /// Nothing else can decide instead of it: from now on its time is a budget.
    pub(super) fn enforce_time_budget(&self) {
        self.is_without_alternative.store(true, Relaxed);
    }

    /// Whether its `on_error` decides while it is over its budget. While another version may still
    /// come in its place, it is asked for as long as that takes.
    pub(super) fn is_time_a_budget(&self) -> bool {
        self.is_without_alternative.load(Relaxed)
    }

    /// How many workers do not call it for now.
    pub(super) fn workers_over_budget(&self) -> usize {
        usize::try_from(self.services.metrics.over_budget().get()).unwrap_or_default()
    }

    /// The limit on an instance's memory, in bytes.
    pub(super) fn memory(&self) -> usize {
        usize::try_from(self.config.memory.as_u64()).unwrap_or(usize::MAX)
    }

    /// Between an instance of it and the state that gateways share.
    pub(super) fn session(&self) -> Session {
        let most = usize::try_from(self.config.max_shared_state.as_u64()).unwrap_or(usize::MAX);
        Session::new(self.runtime.states.account_of(&self.config.name), most)
    }

    /// The host's side of a fresh instance.
    pub(super) fn host_state(&self) -> HostState {
        HostState::new(Arc::clone(&self.services), self.memory())
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
