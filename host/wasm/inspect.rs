//! What a plugin's file contains, and whether a gateway would accept it. For plugin authors.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use wit_parser::{Resolve, WorldItem, WorldKey};

use crate::decision::PluginVersion;
use crate::digest::Digest;
use crate::settings::SettingsSchema;
use crate::wasm::described::{self, DescribeError};
use crate::wasm::instance::InstanceLimits;
use crate::wasm::module::{self, Module};
use crate::wasm::runtime::Runtime;

/// Limits on asking for the schema of the settings: more than plugins have by default.
const LIMITS: InstanceLimits = InstanceLimits { deadline: Duration::from_secs(5), memory: ByteSize::gib(1) };

/// The contents of a plugin's file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Inspection {
    /// `component`, or `module` for a plain module that the gateway turns into a component.
    pub form: &'static str,
    /// In bytes.
    pub size: usize,
    /// SHA-256 of the file; gateways show the first twelve digits.
    pub sha256: Digest,
    /// The contract that it was built for, such as `0.1.1`; `None` if the file does not name one.
    pub contract: Option<String>,
    /// Hooks that the gateway would call.
    pub hooks: Vec<&'static str>,
    /// The exported interfaces, named as in the contract.
    pub exports: Vec<String>,
    /// The imported interfaces, each with the functions in use.
    pub imports: Vec<Import>,
    /// The schema of its settings, if it exports one.
    pub settings: Option<Arc<SettingsSchema>>,
    /// Why a gateway would refuse it.
    pub refused: Option<String>,
}

/// One imported interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Import {
    /// Such as `halley:policy/host@0.1.1`.
    pub interface: String,
    /// The functions in use; empty if only types are used.
    pub functions: Vec<String>,
}

/// Inspects a plugin's bytes and compiles them, as a gateway would, and asks for the schema of the settings.
/// Does not call `init`, because that needs a configuration. Problems in the file are part of the result.
pub fn inspect(runtime: &Runtime, bytes: &[u8]) -> Inspection {
    let (imports, exports) = module::component(bytes).map(|whole| interfaces(&whole)).unwrap_or_default();
    let compiled = runtime.compile_now("", bytes);
    let described = compiled.as_ref().map_or(Ok(None), |module| settings(runtime, module));
    Inspection {
        form: if wasmparser::Parser::is_component(bytes) { "component" } else { "module" },
        size: bytes.len(),
        sha256: Digest::of(bytes),
        contract: module::contract_version(bytes),
        hooks: compiled.as_ref().map(|module| module.hooks.names()).unwrap_or_default(),
        exports,
        imports,
        refused: compiled
            .err()
            .map(|why| why.to_string())
            .or(described.as_ref().err().map(ToString::to_string)),
        settings: described.ok().flatten(),
    }
}

fn settings(runtime: &Runtime, module: &Module) -> Result<Option<Arc<SettingsSchema>>, DescribeError> {
    let version = PluginVersion { name: Arc::from("inspected"), hash: module.hash.short().into() };
    let context = runtime.plugin_context(version, "{}".to_owned(), "inspected");
    described::settings(module, &Arc::new(context), LIMITS)
}

fn interfaces(component: &[u8]) -> (Vec<Import>, Vec<String>) {
    let Ok(wit_component::DecodedWasm::Component(resolve, world)) = wit_component::decode(component) else {
        return Default::default();
    };
    let world = &resolve.worlds[world];
    let import = |(key, item): (&WorldKey, &WorldItem)| {
        let mut functions: Vec<String> = match item {
            WorldItem::Interface { id, .. } => resolve.interfaces[*id].functions.keys().cloned().collect(),
            WorldItem::Function(_) | WorldItem::Type { .. } => Vec::new(),
        };
        functions.sort();
        Import { interface: name(&resolve, key), functions }
    };
    (
        world.imports.iter().map(import).collect(),
        world.exports.keys().map(|key| name(&resolve, key)).collect(),
    )
}

fn name(resolve: &Resolve, key: &WorldKey) -> String {
    resolve.name_world_key(key)
}
