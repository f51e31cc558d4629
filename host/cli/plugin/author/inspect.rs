//! `halley plugin inspect`.

use std::path::{Path, PathBuf};

use prometheus_client::registry::Registry;

use crate::artifact;
use crate::cli::plugin::author::project::EngineArgs;
use crate::cli::plugin::settings;
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, fail, print, print_json, print_lines};
use crate::wasm::{Inspection, Runtime, inspect};

/// Arguments of `halley plugin inspect`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The policy's file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// The capabilities of a policy, by the host functions that it uses.
const CAPABILITIES: [(&str, &[&str]); 4] = [
    ("log", &["log"]),
    ("metrics", &["counter-add", "gauge-set"]),
    ("state", &["state-get", "state-set", "state-delete"]),
    ("clock", &["now"]),
];

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let engine = args.engine.config()?;
    let runtime = Runtime::with(&mut Registry::default(), engine)?;
    let inspected = read_and_inspect(&runtime, &args.file).or_usage()?;
    if args.json {
        let mut json = serde_json::to_value(&inspected)?;
        json["capabilities"] = capabilities(&inspected).into();
        print_json(&serde_json::to_string_pretty(&json)?);
    } else {
        print_lines(summary(&args.file, &inspected));
        print_lines(interfaces(&inspected));
        if let Some(schema) = &inspected.settings {
            print("  settings");
            print_lines(settings::table(schema).iter().map(|line| format!("  {line}")));
        }
    }
    let Some(why) = &inspected.refused else { return Ok(EXIT_SUCCESS) };
    fail(&format!("a gateway would refuse it: it {why}"));
    Ok(EXIT_FAILURE)
}

/// Looks at a plugin's file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read_and_inspect(runtime: &Runtime, file: &Path) -> anyhow::Result<Inspection> {
    let bytes = artifact::read(file).map_err(|why| anyhow::anyhow!("{} {why}", file.display()))?;
    let is_wasm = bytes.starts_with(b"\0asm");
    anyhow::ensure!(is_wasm, "{} is not WebAssembly; `halley plugin build` makes it", file.display());
    Ok(inspect(runtime, &bytes))
}

/// The summary of a built policy.
pub(super) fn summary(file: &Path, inspected: &Inspection) -> [String; 7] {
    let Inspection { form, size, sha256, contract, hooks, .. } = inspected;
    let contract = contract.as_ref().map_or("none".to_owned(), |version| format!("halley:policy@{version}"));
    let short = sha256.short();
    [
        file.display().to_string(),
        format!("  size          {size} bytes, {form}"),
        format!("  sha256        {sha256}"),
        format!("  version       {short}, as gateways show it"),
        format!("  contract      {contract}"),
        format!("  hooks         {}", listed(hooks)),
        format!("  capabilities  {}", listed(&capabilities(inspected))),
    ]
}

fn interfaces(inspected: &Inspection) -> Vec<String> {
    let mut lines = vec!["  exports".to_owned()];
    lines.extend(inspected.exports.iter().map(|name| format!("    {name}")));
    lines.push("  imports".to_owned());
    for import in &inspected.imports {
        let functions = if import.functions.is_empty() {
            String::new()
        } else {
            format!("  {}", import.functions.join(", "))
        };
        lines.push(format!("    {}{functions}", import.interface));
    }
    lines
}

fn capabilities(inspected: &Inspection) -> Vec<&'static str> {
    let host = inspected.imports.iter().filter(|import| import.interface.starts_with("halley:policy/host"));
    let used: Vec<&str> = host.flat_map(|import| &import.functions).map(String::as_str).collect();
    let is_used = |functions: &[&str]| functions.iter().any(|function| used.contains(function));
    let mut found: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, functions)| is_used(functions)).map(|(name, _)| *name).collect();
    if inspected.imports.iter().any(|import| import.interface.starts_with("wasi:")) {
        found.push("wasi (an empty world)");
    }
    found
}

fn listed(words: &[&str]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
