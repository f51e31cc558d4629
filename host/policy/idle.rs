//! A policy that decides nothing, made where it is needed: what others are measured against.

use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::policy::guest::contract::VERSION;

const CONTRACT: &str = include_str!("../../wit/policy.wit");
const CODE: &str = include_str!("idle.wat");

/// The bytes of a plugin with every hook that decides nothing.
///
/// # Errors
/// When the contract and the code do not fit each other, which the tests of this project rule out.
pub fn idle_plugin() -> anyhow::Result<Vec<u8>> {
    idle_plugin_with("")
}

/// The same with more in its module.
pub(super) fn idle_plugin_with(more: &str) -> anyhow::Result<Vec<u8>> {
    let code =
        CODE.replace("VERSION", &VERSION.to_string()).replacen("(module", &format!("(module {more}"), 1);
    let mut module = wat::parse_str(code)?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", CONTRACT)?;
    let world = resolve.select_world(&[package], Some("gateway"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}
