//! A policy that decides nothing, assembled on demand: the baseline for measurements.

use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::wasm::contract::VERSION;

const CONTRACT: &str = include_str!("../../wit/policy.wit");
const CODE: &str = include_str!("idle.wat");

/// The bytes of a plugin that exports every hook but `retention` (which would be a second call per
/// batch) and decides nothing.
///
/// # Errors
/// When the contract and the code do not match; the tests of this project rule that out.
pub fn idle_plugin() -> anyhow::Result<Vec<u8>> {
    idle_plugin_with("")
}

/// The same, with additional definitions in its module.
pub(crate) fn idle_plugin_with(more: &str) -> anyhow::Result<Vec<u8>> {
    let code =
        CODE.replace("VERSION", &VERSION.to_string()).replacen("(module", &format!("(module {more}"), 1);
    let hooks = ["filter", "filter-columns", "grouping", "grouping-columns", "offline", "lifecycle"];
    let exports: String =
        hooks.iter().map(|hook| format!(" export halley:policy/{hook}@{VERSION};")).collect();
    with_contract(&code, &[&format!("package halley:idle; world idle {{{exports} }}")], None)
}

/// A module from this text with a description of its interfaces: a world of the last of these packages,
/// or of the contract itself.
pub(crate) fn with_contract(code: &str, packages: &[&str], world: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut module = wat::parse_str(code)?;
    let mut resolve = Resolve::default();
    let mut package = resolve.push_str("policy.wit", CONTRACT)?;
    for text in packages {
        package = resolve.push_str("world.wit", text)?;
    }
    let world = resolve.select_world(&[package], world)?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}
