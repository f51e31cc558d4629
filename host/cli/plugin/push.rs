//! `halley plugin push`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use reqwest::Method;
use reqwest::multipart::{Form, Part};

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::show::in_force;
use crate::cli::{MISTAKE, SUCCESS, fail, print};

/// Arguments of `halley plugin push`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plugins' files. Each goes to the configured plugin that is called as the file is,
    /// with `-` for `_` where only that is configured: `keyword_filter.wasm` to `keyword-filter`.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The plugin that the one file is for.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    if args.name.is_some() && args.files.len() > 1 {
        fail("`--name` is for one file; leave it out to push several under their own names");
        return Ok(MISTAKE);
    }
    let mut files = Vec::new();
    for file in &args.files {
        let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        files.push((file, bytes));
    }
    let configured = args.gateway.get(&["plugins"])?;
    let mut form = Form::new();
    let mut names = Vec::new();
    for (file, bytes) in files {
        let name = args.name.clone().unwrap_or_else(|| name_of(file, &configured));
        form = form.part(name.clone(), Part::bytes(bytes));
        names.push(name);
    }
    let answer = args.gateway.send(Method::PUT, &["plugins"], |request| request.multipart(form))?;
    for name in &names {
        print(&in_force(name, &answer["plugins"][name]));
    }
    print(&format!("generation {} is in force", answer["generation"]));
    Ok(SUCCESS)
}

/// Which plugin a file is for, by its name.
fn name_of(file: &Path, configured: &serde_json::Value) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let in_force = configured["plugins"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str());
    let overridden = configured["overrides"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let known: Vec<&str> = in_force.chain(overridden).collect();
    let dashed = stem.replace('_', "-");
    if !known.contains(&stem.as_str()) && known.contains(&dashed.as_str()) { dashed } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_is_for_the_plugin_of_its_name() {
        let configured = json!({ "plugins": [{ "name": "keyword-filter" }], "overrides": { "a_b": {} } });
        let name = |file: &str| name_of(Path::new(file), &configured);
        assert_eq!(name("x/keyword_filter.wasm"), "keyword-filter");
        assert_eq!(name("a_b.wasm"), "a_b");
        assert_eq!(name("un_known.wasm"), "un_known");
    }
}
