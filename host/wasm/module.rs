//! Turns a file's bytes into a module that can be instantiated: distinguishes components from core
//! modules, reads the contract version, compiles, and checks imports and exports.
//!
//! Errors are the second half of a sentence that begins with the plugin's name and path.

use std::borrow::Cow;

use wasmparser::{Parser, Payload};
use wasmtime::component::{Component, InstancePre, Linker};

use crate::digest::Digest;
use crate::wasm::bindings::exports::halley::policy::{
    filter, filter_columns, grouping, grouping_columns, lifecycle, offline, retention, settings,
};
use crate::wasm::compile::{CompileError, bounds};
use crate::wasm::contract::{BUILD_FOR_CONTRACT, Contract};
use crate::wasm::failure::causes;
use crate::wasm::host::HostState;
use crate::wasm::metrics::HookKind;

/// The hooks that a plugin exports, and where.
pub(crate) struct Hooks {
    pub(crate) filter: Option<filter::GuestIndices>,
    pub(crate) filter_columns: Option<filter_columns::GuestIndices>,
    pub(crate) retention: Option<retention::GuestIndices>,
    pub(crate) grouping: Option<grouping::GuestIndices>,
    pub(crate) grouping_columns: Option<grouping_columns::GuestIndices>,
    pub(crate) offline: Option<offline::GuestIndices>,
    pub(crate) lifecycle: Option<lifecycle::GuestIndices>,
    /// Not a hook: it is called when the plugin is prepared.
    pub(crate) settings: Option<settings::GuestIndices>,
}

impl Hooks {
    /// Whether it exports a hook, in either shape.
    pub(crate) fn has(&self, hook: HookKind) -> bool {
        match hook {
            HookKind::Filter => self.filter.is_some() || self.filter_columns.is_some(),
            HookKind::Retention => self.retention.is_some(),
            HookKind::Grouping => self.grouping.is_some() || self.columns(),
            HookKind::Offline => self.offline.is_some(),
            HookKind::Init => self.lifecycle.is_some(),
        }
    }

    /// Whether it takes rooms in columns, which is preferred.
    pub(crate) fn columns(&self) -> bool {
        self.grouping_columns.is_some()
    }

    /// The exported hooks, by the names of their interfaces.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let name = |hook: HookKind| if hook == HookKind::Init { "lifecycle" } else { hook.as_str() };
        HookKind::ALL.into_iter().filter(|hook| self.has(*hook)).map(name).collect()
    }
}

/// A compiled plugin. Its code is unmapped with the last reference to it and the last of its
/// instances.
pub(crate) struct Module {
    pub(crate) pre: InstancePre<HostState>,
    pub(crate) hooks: Hooks,
    /// SHA-256 of the file, in hex.
    pub(crate) hash: Digest,
    /// The file's size in bytes.
    pub(crate) size: usize,
    /// The contract version it was built for.
    pub(crate) wit_version: String,
}

impl Module {
    /// Compiles a plugin and checks that it fits the contract. Takes milliseconds to minutes: do not call
    /// this on a thread that carries messages.
    ///
    /// # Errors
    /// The problem, and what the plugin's author can do about it.
    pub(crate) fn compile(
        linker: &Linker<HostState>,
        bytes: &[u8],
        load: impl FnOnce(&[u8]) -> Result<Component, CompileError>,
    ) -> Result<Self, CompileError> {
        let component = component(bytes)?;
        let contract = Contract::read(&component).map_err(CompileError::invalid)?;
        contract.check().map_err(CompileError::invalid)?;
        let compiled = load(&component)?;
        let pre = linker.instantiate_pre(&compiled).map_err(|e| {
            let remedy = contract.remedy();
            CompileError::Invalid(format!(
                "imports what the gateway does not offer: {}; {remedy}",
                causes(&e)
            ))
        })?;
        let hooks = hooks(&contract, &pre)?;
        let wit_version = contract.version().to_string();
        Ok(Self { pre, hooks, hash: Digest::of(bytes), size: bytes.len(), wit_version })
    }
}

/// Returns a component unchanged, or encodes a plain module as a component.
///
/// # Errors
/// When it is neither, exceeds the limits of compilation, or does not describe its interfaces.
pub(crate) fn component(bytes: &[u8]) -> Result<Cow<'_, [u8]>, CompileError> {
    let is_component = Parser::is_component(bytes);
    if !is_component && !Parser::is_core_wasm(bytes) {
        let why = "is not WebAssembly; give the .wasm file that the build wrote to `target`";
        return Err(CompileError::invalid(why));
    }
    bounds::check(bytes).map_err(CompileError::invalid)?;
    if is_component { Ok(Cow::Borrowed(bytes)) } else { encode(bytes).map(Cow::Owned) }
}

/// The contract that a plugin was built for, if it names one.
pub(crate) fn contract_version(bytes: &[u8]) -> Option<String> {
    Contract::read(&component(bytes).ok()?).ok()?.named_version()
}

/// Finds the functions of the exported hooks and checks their types.
fn hooks(contract: &Contract, pre: &InstancePre<HostState>) -> Result<Hooks, CompileError> {
    fn find<I>(
        contract: &Contract,
        interface: &str,
        indices: impl FnOnce() -> wasmtime::Result<I>,
    ) -> Result<Option<I>, CompileError> {
        let indices = contract.exports(interface).then(indices).transpose();
        indices.map_err(|e| CompileError::Invalid(contract.misfit(&causes(&e))))
    }
    Ok(Hooks {
        filter: find(contract, "filter", || filter::GuestIndices::new(pre))?,
        filter_columns: find(contract, "filter-columns", || filter_columns::GuestIndices::new(pre))?,
        retention: find(contract, "retention", || retention::GuestIndices::new(pre))?,
        grouping: find(contract, "grouping", || grouping::GuestIndices::new(pre))?,
        grouping_columns: find(contract, "grouping-columns", || grouping_columns::GuestIndices::new(pre))?,
        offline: find(contract, "offline", || offline::GuestIndices::new(pre))?,
        lifecycle: find(contract, "lifecycle", || lifecycle::GuestIndices::new(pre))?,
        settings: find(contract, "settings", || settings::GuestIndices::new(pre))?,
    })
}

/// Encodes a plain module as a component, from the WIT that wit-bindgen embedded in it.
fn encode(module: &[u8]) -> Result<Vec<u8>, CompileError> {
    if !has_wit(module) {
        return Err(CompileError::Invalid(format!(
            "is a plain module without a description of its interfaces; {BUILD_FOR_CONTRACT}"
        )));
    }
    let encoder = wit_component::ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|e| {
        CompileError::Invalid(format!(
            "cannot be encoded as a component: {e:#}; build it for wasm32-unknown-unknown or wasm32-wasip2"
        ))
    })
}

fn has_wit(module: &[u8]) -> bool {
    let sections = Parser::new(0).parse_all(module).filter_map(Result::ok);
    sections
        .into_iter()
        .any(|section| matches!(section, Payload::CustomSection(s) if s.name().starts_with("component-type")))
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use crate::wasm::Runtime;

    fn refusal(wat: &str) -> String {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        match runtime.compile_now("p", &wat::parse_str(wat).unwrap()) {
            Ok(_) => panic!("it was accepted"),
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn files_that_are_not_plugins_are_refused_with_a_reason() {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        for text in [&b"hello"[..], b""] {
            let why = runtime.compile_now("p", text).err().unwrap().to_string();
            assert!(why.contains("is not WebAssembly"), "{why}");
        }
        assert!(refusal("(module)").contains("plain module without a description"));
        assert!(refusal("(component)").contains("exports none of filter, retention, grouping, offline"));
    }

    #[test]
    fn foreign_imports_and_wrong_types_are_named() {
        let filter = r#"(instance $i) (export "halley:policy/filter@0.1.0" (instance $i))"#;
        let why = refusal(&format!(r#"(component (import "foo:bar/baz" (instance)) {filter})"#));
        assert!(why.contains("imports foo:bar/baz"), "{why}");
        let why = refusal(&format!("(component {filter})"));
        assert!(why.contains("does not fit halley:policy@0.1.3"), "{why}");
        let http = r#"(import "wasi:http/types@0.2.0" (instance (export "f" (func))))"#;
        let why = refusal(&format!("(component {http} {filter})"));
        assert!(why.contains("wasi:http/types"), "{why}");
    }

    #[test]
    fn a_cut_file_is_refused_wherever_it_is_cut() {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        let whole = wat::parse_str(r#"(component (core module (func (export "f")))(import "a" (instance)))"#)
            .unwrap();
        for length in 0..whole.len() {
            assert!(runtime.compile_now("p", &whole[..length]).is_err(), "cut at {length}");
        }
    }
}
