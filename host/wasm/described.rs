//! The settings that a plugin describes: asks a plugin for the schema of its `config` table.

use std::sync::Arc;

use crate::settings::{SchemaError, SettingsSchema};
use crate::wasm::failure::PluginFailure;
use crate::wasm::host::PluginContext;
use crate::wasm::instance::{Instance, InstanceLimits};
use crate::wasm::module::Module;

/// Why a plugin's settings are not known: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescribeError {
    /// The call failed.
    #[error("failed when asked for the schema of its settings: {0}")]
    Call(#[from] PluginFailure),
    /// The answer is not accepted.
    #[error("exports a schema of its settings that {0}")]
    Schema(#[from] SchemaError),
}

/// The schema of a plugin's settings; `None` if it exports none.
///
/// # Errors
/// When the plugin does not answer within its limits, or not with a schema that is accepted.
pub(crate) fn settings(
    module: &Module,
    context: &Arc<PluginContext>,
    limits: InstanceLimits,
) -> Result<Option<Arc<SettingsSchema>>, DescribeError> {
    let text = Instance::settings_schema(module, context, limits)?;
    let schema = text.map(|text| SettingsSchema::parse(&text)).transpose()?;
    Ok(schema.map(Arc::new))
}
