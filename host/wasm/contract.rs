//! The contract (`wit/policy.wit`) as seen by a component: which of its interfaces it imports and
//! exports, and in which version. Read before compilation.
//!
//! Errors are the second half of a sentence that begins with the plugin's name and path.

use wasmparser::{Parser, Payload};

/// The version of the contract that this gateway speaks.
pub(crate) const VERSION: Version = Version(0, 1, 3);
/// The remedy for most problems of a plugin.
pub(crate) const BUILD_FOR_CONTRACT: &str =
    "build it for the contract that `halley plugin wit` prints (in Rust, the halley-plugin SDK has it)";

const PACKAGE: &str = "halley:policy/";
/// The interfaces that decide something. A plugin exports at least one of them.
const HOOKS: [&str; 6] = ["filter", "filter-columns", "retention", "grouping", "grouping-columns", "offline"];

/// A version of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, derive_more::Display)]
#[display("{_0}.{_1}.{_2}")]
pub(crate) struct Version(u64, u64, u64);

impl Version {
    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }

    /// The compatibility line of a version. Versions of one line only add to each other, as in
    /// semantic versioning and in wasmtime's linker.
    fn line(self) -> (u64, u64) {
        if self.0 == 0 { (0, self.1) } else { (self.0, 0) }
    }
}

/// How a component does not fit the contract: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContractError {
    #[error("is not valid WebAssembly: {0}; is the file complete?")]
    Invalid(#[from] wasmparser::BinaryReaderError),
    /// It was built for this version.
    #[error("was {}", mismatch(.0))]
    Version(String),
    #[error("exports none of filter, retention, grouping, offline; {remedy}")]
    NoHook { remedy: String },
    #[error("imports {foreign}, which the gateway does not offer; {remedy}")]
    Imports { foreign: String, remedy: &'static str },
}

/// What a component imports and exports at its top level.
#[derive(Debug, Default)]
pub(crate) struct Contract {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Contract {
    /// Reads the names in a component.
    ///
    /// # Errors
    /// When it is not a valid component.
    pub(crate) fn read(component: &[u8]) -> Result<Self, ContractError> {
        let mut names = Self::default();
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        names.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        names.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }

    /// Checks the versions, that there is a hook, and that every import is offered.
    ///
    /// # Errors
    /// The mismatch, and its remedy.
    pub(crate) fn check(&self) -> Result<(), ContractError> {
        for name in self.ours() {
            let text = version_text(name);
            if Version::read(text).is_none_or(|version| version.line() != VERSION.line()) {
                return Err(ContractError::Version(text.to_owned()));
            }
        }
        if !HOOKS.iter().any(|hook| self.exports(hook)) {
            return Err(ContractError::NoHook { remedy: self.remedy() });
        }
        let offered = |name: &String| name.starts_with(PACKAGE) || is_offered_wasi(name);
        let foreign: Vec<&str> = self.imports.iter().filter(|n| !offered(n)).map(String::as_str).collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let remedy = match foreign.iter().all(|name| name.starts_with("wasi:")) {
            true => {
                "policies do no I/O: switch that feature off in the tool that makes the component \
                 (for componentize-js: -d http -d fetch-event)"
            }
            false => BUILD_FOR_CONTRACT,
        };
        Err(ContractError::Imports { foreign: foreign.join(", "), remedy })
    }

    /// The version that it was built for; ours if it names none.
    pub(crate) fn version(&self) -> Version {
        self.ours().filter_map(|name| Version::read(version_text(name))).max().unwrap_or(VERSION)
    }

    /// The version as written in the component.
    pub(crate) fn named_version(&self) -> Option<String> {
        self.ours().map(version_text).max().map(str::to_owned)
    }

    /// Whether this interface of the contract is exported.
    pub(crate) fn exports(&self, interface: &str) -> bool {
        let of_ours = |name: &String| {
            name.strip_prefix(PACKAGE).and_then(|rest| rest.split('@').next()) == Some(interface)
        };
        self.exports.iter().any(of_ours)
    }

    /// An interface does not have the types of the contract.
    pub(crate) fn misfit(&self, why: &str) -> String {
        format!("does not fit halley:policy@{VERSION}: {why}; {}", self.remedy())
    }

    /// The remedy for a plugin that needs something that is not offered: a newer gateway, if the
    /// plugin was built for a later contract.
    pub(crate) fn remedy(&self) -> String {
        let version = self.version();
        match version > VERSION {
            true => format!("it was {}", mismatch(&version.to_string())),
            false => BUILD_FOR_CONTRACT.to_owned(),
        }
    }

    /// The names that belong to the contract.
    fn ours(&self) -> impl Iterator<Item = &str> {
        let names = self.exports.iter().chain(&self.imports).map(String::as_str);
        names.filter(|name| name.starts_with(PACKAGE))
    }
}

/// Whether this belongs to the part of WASI 0.2 that is offered as an empty world.
fn is_offered_wasi(name: &str) -> bool {
    const OFFERED: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];
    let Some((package, version)) = name.strip_prefix("wasi:").and_then(|rest| rest.split_once('@')) else {
        return false;
    };
    let package = package.split('/').next().unwrap_or_default();
    OFFERED.contains(&package) && version.starts_with("0.2.")
}

fn version_text(name: &str) -> &str {
    name.split_once('@').map_or("(none)", |(_, version)| version)
}

/// Both versions and the remedy: the second half of a sentence.
fn mismatch(version: &str) -> String {
    let is_later = Version::read(version).is_some_and(|version| version > VERSION);
    let remedy = match is_later {
        true => "upgrade the gateway, or build it for the gateway's contract (`halley plugin wit`)",
        false => {
            "build it again for this contract (`halley plugin wit`; in Rust, with the halley-plugin SDK of this release)"
        }
    };
    format!(
        "built for the contract halley:policy@{version}, this gateway speaks halley:policy@{VERSION}; {remedy}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(imports: &[&str], exports: &[&str]) -> Contract {
        let names = |names: &[&str]| names.iter().map(|name| format!("halley:policy/{name}")).collect();
        Contract { imports: names(imports), exports: names(exports) }
    }

    fn refusal(exports: &[&str]) -> String {
        contract(&[], exports).check().expect_err("it was accepted").to_string()
    }

    #[test]
    fn the_version_is_the_one_of_the_contract() {
        let wit = include_str!("../../wit/policy.wit");
        assert!(wit.contains(&format!("package halley:policy@{VERSION};")));
    }

    #[test]
    fn an_incompatible_contract_error_names_both_versions() {
        assert_eq!(
            refusal(&["filter@0.0.9"]),
            format!(
                "was built for the contract halley:policy@0.0.9, this gateway speaks halley:policy@{VERSION}; \
                 build it again for this contract (`halley plugin wit`; in Rust, with the halley-plugin SDK of this \
                 release)"
            )
        );
        assert_eq!(
            refusal(&["filter@0.2.0"]),
            format!(
                "was built for the contract halley:policy@0.2.0, this gateway speaks halley:policy@{VERSION}; \
                 upgrade the gateway, or build it for the gateway's contract (`halley plugin wit`)"
            )
        );
        for strange in ["filter", "filter@0.1", "filter@0.1.0.0", "filter@x.y.z"] {
            assert!(refusal(&[strange]).contains("build it again"), "{strange}");
        }
    }

    #[test]
    fn compatible_contract_versions_are_accepted() {
        for version in ["0.1.0", "0.1.1", "0.1.2", "0.1.3", "0.1.99"] {
            let contract = contract(&["types@0.1.0"], &[&format!("filter@{version}")]);
            contract.check().unwrap();
            assert_eq!(contract.version().to_string(), version);
        }
    }

    #[test]
    fn parts_of_wasi_that_are_not_offered_are_named_with_the_remedy() {
        let wasi = |import: &str| {
            let imports = vec!["wasi:cli/stderr@0.2.3".to_owned(), import.to_owned()];
            Contract { imports, exports: vec!["halley:policy/filter@0.1.1".to_owned()] }.check()
        };
        wasi("wasi:io/streams@0.2.12").unwrap();
        for foreign in ["wasi:http/types@0.2.0", "wasi:cli/stderr@0.3.0", "wasi:nn/graph", "wasi:http"] {
            let why = wasi(foreign).unwrap_err().to_string();
            assert!(
                why.starts_with(&format!("imports {foreign}, which")) && why.contains("-d http"),
                "{why}"
            );
            assert!(!why.contains("SDK"), "{why}");
        }
        assert!(wasi("foo:bar/baz").unwrap_err().to_string().contains("halley plugin wit"));
    }

    #[test]
    fn missing_features_of_a_newer_contract_name_both_versions() {
        let why = refusal(&["lifecycle@0.1.99", "prophecy@0.1.99"]);
        assert!(
            why.starts_with("exports none of filter, retention, grouping, offline; it was built for"),
            "{why}"
        );
        assert!(why.contains("@0.1.99, this gateway speaks") && why.contains("upgrade the gateway"), "{why}");
        let earlier = contract(&[], &["filter@0.1.0"]);
        assert_eq!(earlier.remedy(), BUILD_FOR_CONTRACT);
    }
}
