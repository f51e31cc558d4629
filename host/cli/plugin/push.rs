//! `halley plugin push`.

use std::path::{Path, PathBuf};

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::multipart::{Form, Part};

use crate::artifact::{read_signature, signature_as_text};
use crate::cli::plugin::client::GatewayArgs;
use crate::cli::plugin::show::plugin_lines;
use crate::cli::{EXIT_SUCCESS, LARGEST_INPUT, plugin_name_of, print, print_lines, usage};
use crate::files;

/// The header of a part that carries its signature.
const SIGNATURE: HeaderName = HeaderName::from_static("halley-signature");

/// Arguments of `halley plugin push`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The plugins' files. Each one is pushed to the configured plugin that is named like the file,
    /// or with `-` for `_` if only that is configured: `keyword_filter.wasm` to `keyword-filter`. The
    /// signature in FILE.sig is sent along, if it exists.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The plugin to push a single file to.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    if args.name.is_some() && args.files.len() > 1 {
        return usage("`--name` is for a single file; omit it to push several files under their own names");
    }
    push(&args.files, args.name.as_deref(), &args.gateway)?;
    Ok(EXIT_SUCCESS)
}

/// Activates these files together, each for the plugin that it is named after, or for `name`.
///
/// # Errors
/// When a file cannot be read, or the gateway refuses.
pub(super) fn push(paths: &[PathBuf], name: Option<&str>, gateway: &GatewayArgs) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for file in paths {
        let bytes =
            files::read(file, LARGEST_INPUT).map_err(|why| anyhow::anyhow!("{} {why}", file.display()))?;
        files.push((file, bytes, signature(file)?));
    }
    let configured = gateway.get(&["plugins"])?;
    let mut form = Form::new();
    let mut names = Vec::new();
    for (file, bytes, signature) in files {
        let name = name.map_or_else(|| plugin_name_of(file, known(&configured)), str::to_owned);
        form = form.part(name.clone(), Part::bytes(bytes).headers(signature));
        names.push(name);
    }
    let answer = gateway.send(Method::PUT, &["plugins"], |request| request.multipart(form))?;
    for name in &names {
        print_lines(plugin_lines(name, &answer["plugins"][name]));
    }
    print(&format!("generation {} is active", answer["generation"]));
    Ok(())
}

/// The content of FILE.sig in the header's format; empty if it does not exist.
fn signature(file: &Path) -> anyhow::Result<HeaderMap> {
    let wrong = |why: String| anyhow::anyhow!("{} {why}", file.display());
    let Some(bytes) = read_signature(file).map_err(|why| wrong(why.to_string()))? else {
        return Ok(HeaderMap::new());
    };
    let text = signature_as_text(&bytes).map_err(|why| wrong(format!("has a signature that {why}")))?;
    Ok(HeaderMap::from_iter([(SIGNATURE, HeaderValue::from_str(&text)?)]))
}

/// The names of a gateway's plugins.
fn known(configured: &serde_json::Value) -> impl Iterator<Item = &str> + Clone {
    let plugin_lines =
        configured["plugins"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str());
    let overridden = configured["overrides"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    plugin_lines.chain(overridden)
}
