//! One plugin of a set, prepared: read, compiled, checked, started once and tried.

use std::path::Path;
use std::sync::Arc;

use crate::decision::PluginVersion;
use crate::membership::{Grouping, Membership};
use crate::message::{Audience, Message, MessageId, Origin, Record};
use crate::policy::config::PluginConfig;
use crate::policy::guest::answers;
use crate::policy::guest::bindings::halley::policy::types::Source;
use crate::policy::guest::host::{HostState, Services};
use crate::policy::guest::instance::{Failure, Instance};
use crate::policy::guest::module::{self, Module};
use crate::policy::guest::questions::{Room, with_message};
use crate::policy::guest::runtime::Runtime;
use crate::policy::versions::{Alarm, Failures};

/// A prepared plugin. Sets share the ones that did not change between them.
pub(super) struct Plugin {
    pub(super) config: PluginConfig,
    pub(super) version: PluginVersion,
    pub(super) module: Arc<Module>,
    pub(super) services: Arc<Services>,
    pub(super) failures: Failures,
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
        in_force: &[Arc<Self>],
    ) -> Result<Arc<Self>, String> {
        let hash = module::hash(bytes);
        let same_bytes = || in_force.iter().filter(|plugin| plugin.module.hash == hash);
        if let Some(unchanged) = same_bytes().find(|plugin| plugin.config == *config) {
            return Ok(Arc::clone(unchanged));
        }
        let module = match same_bytes().next() {
            Some(known) => Arc::clone(&known.module),
            None => Arc::new(module::compile(runtime, bytes)?),
        };
        let plugin = Arc::new(Self::new(runtime, config, module));
        plugin.try_out().map_err(|failure| failure.message)?;
        Ok(plugin)
    }

    fn new(runtime: &Arc<Runtime>, config: &PluginConfig, module: Arc<Module>) -> Self {
        let name = Arc::from(config.name.as_str());
        let version = PluginVersion { name, hash: module.hash[..12].into() };
        let metrics = runtime.metrics.plugin(&version);
        let state = runtime.states.of(&config.name);
        let services = Services::new(version.clone(), config.config.to_string(), metrics, state);
        Self {
            config: config.clone(),
            version,
            module,
            services: Arc::new(services),
            failures: Failures::new(config.quarantine.clone()),
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
        let answer = instance.regroup("trial", &Room::of(&nobody)).map_err(trial("grouping"))?;
        answers::regrouping(answer, 0, &[]).map_err(Failure::bad_answer).map_err(trial("grouping"))?;
        let source = Source { topic: "trial", partition: 0 };
        with_message(&trial_message(), |message| instance.decide(source, message, &[]))
            .map_err(trial("offline"))?;
        Ok(())
    }

    /// It has failed too often.
    pub(super) fn raise_alarm(&self, last: &Failure) {
        let (plugin, hash) = (self.config.name.clone(), self.module.hash.clone());
        self.runtime.alarms.raise(Alarm { plugin, hash, last: last.to_string() });
    }

    /// The limit on an instance's memory, in bytes.
    pub(super) fn memory(&self) -> usize {
        usize::try_from(self.config.memory.as_u64()).unwrap_or(usize::MAX)
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
    let record = Record { origin, timestamp_ms: None, key: None, value: None, headers: Vec::new() };
    Message {
        id: MessageId::from("trial/0/0"),
        record: Arc::new(record),
        audience: Audience::Room("trial".into()),
        operation: 0,
        body: bytes::Bytes::new(),
    }
}
