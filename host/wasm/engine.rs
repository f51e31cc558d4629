//! wasmtime's engine: which WebAssembly features plugins may use, and how their code is compiled.
//!
//! The process that compiles and the one that runs the code build their engines from the same
//! [`EngineConfig`]; wasmtime refuses code that was compiled with another one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytesize::ByteSize;
use wasmparser::Payload;
use wasmtime::{Config, Engine, Module};

use crate::telemetry::label_enum;
use crate::wasm::address_space;

label_enum! {
    /// A WebAssembly proposal that no language with a guide here needs. Each proposal exposes more code
    /// of the compiler and the runtime to plugins, so all of them are off by default.
    ///
    /// Features that compilers to WebAssembly emit by default are always on: the MVP with sign extension,
    /// saturating conversions, multiple values, bulk memory, reference types, extended constants and
    /// fixed-width SIMD.
    #[derive(serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
    #[serde(rename_all = "kebab-case")]
    pub enum WasmFeature {
        /// Garbage-collected types, and typed references to functions.
        Gc = "gc",
        /// Exceptions.
        Exceptions = "exceptions",
        /// Memories and tables with 64-bit addresses.
        Memory64 = "memory64",
        /// More than one memory in a module.
        MultiMemory = "multi-memory",
        /// SIMD whose results depend on the processor.
        RelaxedSimd = "relaxed-simd",
        /// Calls that replace their caller's frame.
        TailCall = "tail-call",
    }
}

impl WasmFeature {
    /// The feature with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.as_str() == name)
    }

    fn set(self, config: &mut Config, on: bool) {
        match self {
            Self::Gc => config.wasm_gc(on).wasm_function_references(on),
            Self::Exceptions => config.wasm_exceptions(on),
            Self::Memory64 => config.wasm_memory64(on),
            Self::MultiMemory => config.wasm_multi_memory(on),
            Self::RelaxedSimd => config.wasm_relaxed_simd(on),
            Self::TailCall => config.wasm_tail_call(on),
        };
    }
}

/// The settings that decide whether compiled code fits an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineConfig {
    pub(crate) features: Vec<WasmFeature>,
    /// Whether the address space of the process that runs the code is limited.
    pub(crate) has_limited_address_space: bool,
}

impl EngineConfig {
    /// For code that runs in this process.
    pub(crate) fn of_this_process(features: &[WasmFeature]) -> Self {
        let limit = address_space::limit();
        let has_limited_address_space = address_space::has_limited_address_space(limit);
        if has_limited_address_space {
            tracing::info!(
                limit = %ByteSize::b(limit.unwrap_or_default()),
                "the process's address space is limited: memories of plugins reserve only what they use and check bounds"
            );
        }
        Self { features: features.to_vec(), has_limited_address_space }
    }

    /// The disabled features that this component needs; none if it is invalid even with all of them.
    pub(super) fn missing(&self, component: &[u8]) -> Vec<WasmFeature> {
        let modules = core_modules(component);
        let is_valid = |features: Vec<WasmFeature>| {
            let engine =
                Self { features, has_limited_address_space: self.has_limited_address_space }.engine();
            engine.is_ok_and(|engine| modules.iter().all(|module| Module::validate(&engine, module).is_ok()))
        };
        if !is_valid(WasmFeature::ALL.to_vec()) {
            return Vec::new();
        }
        let all_but = |feature| WasmFeature::ALL.into_iter().filter(|other| *other != feature).collect();
        let off = WasmFeature::ALL.into_iter().filter(|feature| !self.features.contains(feature));
        off.filter(|feature| !is_valid(all_but(*feature))).collect()
    }

    /// # Errors
    /// When this machine cannot run WebAssembly.
    pub(crate) fn engine(&self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config.wasm_component_model(true).epoch_interruption(true);
        for feature in WasmFeature::ALL {
            feature.set(&mut config, self.features.contains(&feature));
        }
        if self.has_limited_address_space {
            address_space::limit_memory_reservations(&mut config);
        }
        Engine::new(&config)
    }
}

/// The modules in a component, as far as it can be read.
fn core_modules(component: &[u8]) -> Vec<&[u8]> {
    let payloads = wasmparser::Parser::new(0).parse_all(component).map_while(Result::ok);
    let module = |payload| match payload {
        Payload::ModuleSection { unchecked_range, .. } => component.get(unchecked_range),
        _ => None,
    };
    payloads.filter_map(module).collect()
}

/// A fingerprint of everything that decides whether code fits the engine: wasmtime's version, the
/// processor, the settings.
pub(crate) fn fingerprint(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module that needs this feature and no other one that is off by default.
    fn module(feature: WasmFeature) -> &'static str {
        match feature {
            WasmFeature::Gc => "(module (type (struct (field i32))))",
            WasmFeature::Exceptions => "(module (tag))",
            WasmFeature::Memory64 => "(module (memory i64 1))",
            WasmFeature::MultiMemory => "(module (memory 1) (memory 1))",
            WasmFeature::RelaxedSimd => {
                "(module (func (param v128 v128) (result v128)
                    (i8x16.relaxed_swizzle (local.get 0) (local.get 1))))"
            }
            WasmFeature::TailCall => "(module (func $f (return_call $f)))",
        }
    }

    fn binary(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn features_are_off_unless_they_are_named() {
        let engine = |features: &[WasmFeature]| {
            EngineConfig { features: features.to_vec(), has_limited_address_space: false }.engine().unwrap()
        };
        let plain = engine(&[]);
        for feature in WasmFeature::ALL {
            assert_eq!(WasmFeature::named(feature.as_str()), Some(feature));
            assert_eq!(serde_json::to_value(feature).unwrap(), feature.as_str());
            let takes = |engine: &Engine| Module::new(engine, binary(module(feature))).is_ok();
            let others: Vec<_> = WasmFeature::ALL.into_iter().filter(|other| *other != feature).collect();
            assert!(!takes(&plain) && !takes(&engine(&others)), "{feature:?}");
            assert!(takes(&engine(&[feature])), "{feature:?}");
        }
        for never in ["(module (memory 1 1 shared))", "(module (memory 1 (pagesize 1)))"] {
            assert!(Module::new(&engine(&WasmFeature::ALL), binary(never)).is_err(), "{never}");
        }
    }

    #[test]
    fn the_features_that_a_component_needs_are_known() {
        let component = |features: &[WasmFeature]| {
            let modules: Vec<_> = features
                .iter()
                .map(|feature| module(*feature).replacen("(module", "(core module", 1))
                .collect();
            binary(&format!("(component {})", modules.join("\n")))
        };
        let plain = EngineConfig::default();
        for feature in WasmFeature::ALL {
            assert_eq!(plain.missing(&component(&[feature])), [feature]);
            let on = EngineConfig { features: vec![feature], ..plain.clone() };
            assert_eq!(on.missing(&component(&[feature])), []);
        }
        let both = [WasmFeature::Memory64, WasmFeature::TailCall];
        assert_eq!(plain.missing(&component(&both)), both);
        assert_eq!(plain.missing(b"not a component"), []);
        let never = binary("(component (core module (memory 1 1 shared)))");
        assert_eq!(plain.missing(&never), [], "no feature switches that on");
    }

    #[test]
    fn code_of_another_engine_has_another_fingerprint() {
        let of = |config: EngineConfig| fingerprint(&config.engine().unwrap());
        let plain = of(EngineConfig::default());
        assert_eq!(plain, of(EngineConfig::default()));
        assert_ne!(plain, of(EngineConfig { has_limited_address_space: true, ..EngineConfig::default() }));
        let gc = EngineConfig { features: vec![WasmFeature::Gc], ..EngineConfig::default() };
        assert_ne!(plain, of(gc));
    }
}
