//! From a file's bytes to something that can be instantiated: told apart (component or plain
//! module), its contract version read, compiled, its imports and exports checked.
//!
//! Errors are the second half of a sentence that begins with the plugin's name and path.

use std::fmt::Write as _;
use std::path::Path;

use sha2::Digest as _;
use wasmparser::{Parser, Payload};
use wasmtime::component::{Component, InstancePre};

use crate::policy::guest::bindings::exports::halley::policy::{filter, grouping, lifecycle, offline};
use crate::policy::guest::host::HostState;
use crate::policy::guest::runtime::Runtime;

/// The version of the WIT contract that this gateway speaks (`wit/policy.wit`).
pub(in crate::policy) const WIT_VERSION: &str = "0.1.0";
/// The largest file that is looked at, in bytes.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
const PACKAGE: &str = "halley:policy/";

/// What a plugin exports, and where.
pub(in crate::policy) struct Hooks {
    pub(in crate::policy) filter: Option<filter::GuestIndices>,
    pub(in crate::policy) grouping: Option<grouping::GuestIndices>,
    pub(in crate::policy) offline: Option<offline::GuestIndices>,
    pub(in crate::policy) lifecycle: Option<lifecycle::GuestIndices>,
}

impl Hooks {
    /// The hooks that are there, by the names of their interfaces.
    pub(in crate::policy) fn names(&self) -> Vec<&'static str> {
        let all = [
            ("filter", self.filter.is_some()),
            ("grouping", self.grouping.is_some()),
            ("offline", self.offline.is_some()),
            ("lifecycle", self.lifecycle.is_some()),
        ];
        all.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect()
    }
}

/// A compiled plugin. Its code is unmapped with the last of these and of its instances.
pub(in crate::policy) struct Module {
    pub(in crate::policy) pre: InstancePre<HostState>,
    pub(in crate::policy) hooks: Hooks,
    /// SHA-256 of the file, in hex.
    pub(in crate::policy) hash: String,
    /// The file's size in bytes.
    pub(in crate::policy) size: usize,
    /// The contract version it was built for.
    pub(in crate::policy) wit_version: String,
}

/// Reads a plugin's file.
///
/// # Errors
/// When it is not there, cannot be read, or is too large to be a plugin.
pub(in crate::policy) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path)
        .map_err(|e| format!("cannot be read: {e}; check `path` and the file's permissions"))?;
    if !metadata.is_file() {
        return Err("is not a file; `path` must name the .wasm file itself".to_owned());
    }
    if metadata.len() > MAX_SIZE {
        return Err(format!("has {} bytes; plugins have at most {MAX_SIZE}", metadata.len()));
    }
    std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))
}

/// The SHA-256 of a file's bytes, in hex.
pub(in crate::policy) fn hash(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in sha2::Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Compiles a plugin and checks that it fits. Takes milliseconds to seconds: not for a
/// thread that carries messages.
///
/// # Errors
/// What is wrong with it, and what its author can do.
pub(in crate::policy) fn compile(runtime: &Runtime, bytes: &[u8]) -> Result<Module, String> {
    let encoded;
    let component = if Parser::is_component(bytes) {
        bytes
    } else if Parser::is_core_wasm(bytes) {
        encoded = encode(bytes)?;
        &encoded
    } else {
        return Err("is not WebAssembly; give the .wasm file that the build left in `target`".to_owned());
    };
    let names = Names::read(component)?;
    let wit_version = names.check()?;
    let compiled = Component::new(&runtime.engine, component)
        .map_err(|e| format!("does not compile: {}; is the file complete?", causes(&e)))?;
    let pre = runtime
        .linker
        .instantiate_pre(&compiled)
        .map_err(|e| format!("imports what the gateway does not offer: {}; {BUILD_WITH_SDK}", causes(&e)))?;
    let hooks = names.hooks(&pre)?;
    Ok(Module { pre, hooks, hash: hash(bytes), size: bytes.len(), wit_version })
}

const BUILD_WITH_SDK: &str = "build it with the halley-plugin SDK";

/// Makes a component of a plain module, from the WIT that wit-bindgen left in its sections.
fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    if !has_wit(module) {
        return Err(format!("is a plain module that says nothing about its interfaces; {BUILD_WITH_SDK}"));
    }
    let encoder = wit_component::ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|e| {
        format!("cannot be made a component: {e:#}; build it for wasm32-unknown-unknown or wasm32-wasip2")
    })
}

fn has_wit(module: &[u8]) -> bool {
    let sections = Parser::new(0).parse_all(module).filter_map(Result::ok);
    sections
        .into_iter()
        .any(|section| matches!(section, Payload::CustomSection(s) if s.name().starts_with("component-type")))
}

/// What a component imports and exports at its top level.
#[derive(Debug, Default)]
struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Names {
    fn read(component: &[u8]) -> Result<Self, String> {
        let broken = |e: wasmparser::BinaryReaderError| {
            format!("is not valid WebAssembly: {e}; is the file complete?")
        };
        let mut names = Self::default();
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(broken)? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        names.imports.push(import.map_err(broken)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        names.exports.push(export.map_err(broken)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }

    /// Checks versions, that there is a hook, and that nothing foreign is imported. Answers
    /// with the contract version.
    fn check(&self) -> Result<String, String> {
        let ours = || self.exports.iter().chain(&self.imports).filter(|name| name.starts_with(PACKAGE));
        for name in ours() {
            let version = version_of(name);
            if !is_compatible(version) {
                return Err(format!(
                    "was built for the contract halley:policy@{version}, this gateway speaks \
                     halley:policy@{WIT_VERSION}; build it again with the halley-plugin SDK of this release"
                ));
            }
        }
        if !["filter", "grouping", "offline"].iter().any(|hook| self.export(hook).is_some()) {
            return Err(format!("exports none of filter, grouping, offline; {BUILD_WITH_SDK}"));
        }
        let offered = |name: &String| name.starts_with(PACKAGE) || name.starts_with("wasi:");
        let foreign: Vec<&str> = self.imports.iter().filter(|n| !offered(n)).map(String::as_str).collect();
        if !foreign.is_empty() {
            return Err(format!("imports {}, which the gateway does not offer", foreign.join(", ")));
        }
        Ok(ours().next().map_or(WIT_VERSION, |name| version_of(name)).to_owned())
    }

    /// Whether this interface of the contract is exported.
    fn export(&self, interface: &str) -> Option<&str> {
        let is_it = |name: &&str| {
            name.strip_prefix(PACKAGE).and_then(|rest| rest.split('@').next()) == Some(interface)
        };
        self.exports.iter().map(String::as_str).find(is_it)
    }

    /// Finds the functions of the exported hooks and checks their types.
    fn hooks(&self, pre: &InstancePre<HostState>) -> Result<Hooks, String> {
        let misfit = |e: wasmtime::Error| {
            format!("does not fit halley:policy@{WIT_VERSION}: {}; {BUILD_WITH_SDK}", causes(&e))
        };
        let there = |interface: &str| self.export(interface).is_some();
        Ok(Hooks {
            filter: there("filter").then(|| filter::GuestIndices::new(pre)).transpose().map_err(misfit)?,
            grouping: there("grouping")
                .then(|| grouping::GuestIndices::new(pre))
                .transpose()
                .map_err(misfit)?,
            offline: there("offline").then(|| offline::GuestIndices::new(pre)).transpose().map_err(misfit)?,
            lifecycle: there("lifecycle")
                .then(|| lifecycle::GuestIndices::new(pre))
                .transpose()
                .map_err(misfit)?,
        })
    }
}

fn version_of(name: &str) -> &str {
    name.split_once('@').map_or("(none)", |(_, version)| version)
}

/// As semantic versioning has it, and as wasmtime links: for 0.x the second number counts.
fn is_compatible(version: &str) -> bool {
    let track = |version: &str| version.rsplit_once('.').map(|(track, _)| track.to_owned());
    track(version) == track(WIT_VERSION)
}

/// An error with what is behind it, in one line.
pub(in crate::policy) fn causes(error: &wasmtime::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    fn refusal(wat: &str) -> String {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        match compile(&runtime, &wat::parse_str(wat).unwrap()) {
            Ok(_) => panic!("it was accepted"),
            Err(why) => why,
        }
    }

    #[test]
    fn what_is_no_plugin_is_told_why() {
        let runtime = Runtime::new(&mut Registry::default()).unwrap();
        assert!(compile(&runtime, b"hello").err().unwrap().contains("is not WebAssembly"));
        assert!(compile(&runtime, b"").err().unwrap().contains("is not WebAssembly"));
        assert!(refusal("(module)").contains("plain module that says nothing"));
        assert!(refusal("(component)").contains("exports none of filter, grouping, offline"));
    }

    #[test]
    fn the_version_is_the_one_of_the_contract() {
        let wit = include_str!("../../../wit/policy.wit");
        assert!(wit.contains(&format!("package halley:policy@{WIT_VERSION};")));
    }

    #[test]
    fn another_version_of_the_contract_is_explained_with_both() {
        let why = refusal(r#"(component (instance $i) (export "halley:policy/filter@0.0.9" (instance $i)))"#);
        assert!(why.contains("halley:policy@0.0.9") && why.contains("halley:policy@0.1.0"), "{why}");
        assert!(why.contains("build it again"), "{why}");
        assert!(is_compatible("0.1.7") && !is_compatible("0.2.0") && !is_compatible("(none)"));
    }

    #[test]
    fn foreign_imports_and_wrong_types_are_named() {
        let filter = r#"(instance $i) (export "halley:policy/filter@0.1.0" (instance $i))"#;
        let why = refusal(&format!(r#"(component (import "foo:bar/baz" (instance)) {filter})"#));
        assert!(why.contains("imports foo:bar/baz"), "{why}");
        let why = refusal(&format!("(component {filter})"));
        assert!(why.contains("does not fit halley:policy@0.1.0"), "{why}");
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
            assert!(compile(&runtime, &whole[..length]).is_err(), "cut at {length}");
        }
    }
}
