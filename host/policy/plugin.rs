//! One version of a plugin with its settings: starts its instances, and holds its statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::artifact::PluginSource;
use crate::decision::PluginVersion;
use crate::membership::{Grouping, Membership};
use crate::message::{Audience, Message, MessageId, Origin, Record};
use crate::policy::config::PluginConfig;
use crate::policy::rollout::analysis::StatsRecorder;
use crate::policy::rollout::config::QuarantineAction;
use crate::policy::rollout::quarantine::{FailureAlarm, FailureAlarms, FailureWindow};
use crate::settings::{SettingsError, SettingsSchema};
use crate::wasm::Runtime;
use crate::wasm::described::{self, DescribeError};
use crate::wasm::failure::PluginFailure;
use crate::wasm::host::PluginContext;
use crate::wasm::instance::{Instance, InstanceLimits, Reserved};
use crate::wasm::module::Module;
use crate::wasm::room::RoomView;
use crate::wasm::shared::SharedStateSession;

/// What is wrong with a plugin's settings: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsProblem {
    /// It does not say what its settings are.
    #[error(transparent)]
    Unknown(#[from] DescribeError),
    /// Its `config` table violates the schema.
    #[error(transparent)]
    Violated(#[from] SettingsError),
}

/// A prepared plugin. Sets share the plugins that did not change between them.
pub(super) struct Plugin {
    pub(super) config: PluginConfig,
    pub(super) version: PluginVersion,
    pub(super) module: Arc<Module>,
    pub(super) context: Arc<PluginContext>,
    /// The schema of its settings, if it exports one.
    pub(super) settings: Option<Arc<SettingsSchema>>,
    pub(super) failures: FailureWindow,
    /// Its statistics, for comparison with a candidate.
    pub(super) stats: StatsRecorder,
    /// Whether no other version can replace it.
    has_no_fallback: AtomicBool,
    /// Where it reports that it has failed too often.
    alarms: Arc<FailureAlarms>,
    /// Keeps the epochs behind the deadlines running.
    runtime: Arc<Runtime>,
}

impl Plugin {
    /// Turns it into a shadow, with state and metrics of its own.
    pub(super) fn shadow(self) -> Self {
        let (version, config) = (self.version.clone(), self.config.config.to_string());
        let context = self.runtime.plugin_context(version, config, &format!("{}\0shadow", self.config.name));
        Self { context: Arc::new(PluginContext { silent: true, ..context }), ..self }
    }

    /// A plugin with these settings; not called yet.
    pub(super) fn new(
        runtime: &Arc<Runtime>,
        alarms: &Arc<FailureAlarms>,
        config: &PluginConfig,
        module: Arc<Module>,
    ) -> Self {
        let name = Arc::from(config.name.as_str());
        let version = PluginVersion { name, hash: module.hash.short().into() };
        let context = runtime.plugin_context(version.clone(), config.config.to_string(), &config.name);
        Self {
            config: config.clone(),
            version,
            module,
            context: Arc::new(context),
            settings: None,
            failures: FailureWindow::new(config.quarantine.clone()),
            has_no_fallback: AtomicBool::new(config.quarantine.action == QuarantineAction::Never),
            stats: StatsRecorder::default(),
            alarms: Arc::clone(alarms),
            runtime: Arc::clone(runtime),
        }
    }

    /// Asks for the schema of its settings, and checks its `config` table against it.
    pub(super) fn with_checked_settings(self) -> Result<Self, SettingsProblem> {
        let settings = described::settings(&self.module, &self.context, self.limits())?;
        if let Some(schema) = &settings {
            schema.check(&self.config.config)?;
        }
        Ok(Self { settings, ..self })
    }

    /// Starts an instance.
    pub(super) fn start(&self) -> Result<Instance, PluginFailure> {
        Instance::start(&self.module, &self.context, self.limits())
    }

    /// Allocates the memory of an instance without starting it.
    pub(super) fn reserve(&self) -> Result<Reserved, PluginFailure> {
        Reserved::new(&self.module, &self.context, self.limits())
    }

    fn limits(&self) -> InstanceLimits {
        InstanceLimits { deadline: self.config.deadline, memory: self.config.memory }
    }

    /// Starts an instance and calls every hook with empty input.
    pub(super) fn smoke_test(&self) -> Result<(), PluginFailure> {
        let mut instance = self.start()?;
        let failed = |hook: &'static str| {
            move |failure: PluginFailure| PluginFailure {
                message: format!("failed its trial call of {hook}: {failure}"),
                ..failure
            }
        };
        instance.filter("trial", 0, &[]).map_err(failed("filter"))?;
        instance.retain("trial", 0, &[]).map_err(failed("retention"))?;
        let nobody = Grouping::new(Arc::new(Membership::default()));
        let room = RoomView::of(&nobody, self.module.hooks.columns());
        if let Some(answer) = instance.regroup("trial", &room).map_err(failed("grouping"))? {
            room.check(answer).map_err(failed("grouping"))?;
        }
        instance.decide(&smoke_test_message(), &[]).map_err(failed("offline"))?;
        Ok(())
    }

    /// Raises an alarm: it failed too often, or for too long.
    pub(super) fn raise_alarm(&self, limit: String, last: &PluginFailure) {
        let (plugin, hash) = (self.config.name.clone(), self.module.hash);
        self.alarms.raise(FailureAlarm { plugin, hash, limit, last: last.to_string() });
    }

    /// Enforces the time budget from now on, because no other version can replace it.
    pub(super) fn enforce_time_budget(&self) {
        self.has_no_fallback.store(true, Relaxed);
    }

    /// Whether its `on_error` decides while it exceeds its budget. While another version may still
    /// replace it, it is called until the replacement is active.
    pub(super) fn enforces_time_budget(&self) -> bool {
        self.has_no_fallback.load(Relaxed)
    }

    /// How many workers do not call it for now.
    pub(super) fn workers_over_budget(&self) -> usize {
        usize::try_from(self.context.metrics.over_budget().get()).unwrap_or_default()
    }

    /// Connects an instance with the state that gateways share.
    pub(super) fn session(&self) -> SharedStateSession {
        let most = usize::try_from(self.config.max_shared_state.as_u64()).unwrap_or(usize::MAX);
        SharedStateSession::new(self.runtime.states.usage_of(&self.config.name), most)
    }

    /// Where it came from.
    pub(super) fn source(&self) -> &PluginSource {
        &self.config.path
    }
}

fn smoke_test_message() -> Message {
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
