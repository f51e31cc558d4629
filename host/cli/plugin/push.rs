//! `halley plugin push`: new versions for a running gateway.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::multipart::{Form, Part};

use crate::cli::plugin::gateway::Gateway;
use crate::cli::plugin::table::in_force;
use crate::cli::{MISTAKE, SUCCESS, fail, print, runtime};

/// Arguments of `halley plugin push`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plugins' .wasm files. Each goes to the plugin of its name (keyword_filter.wasm to
    /// `keyword-filter`, or `keyword_filter` where that is configured); FILE.sig goes with it
    /// where there is one.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The plugin's name, where the file has another one.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

/// One version to push.
struct Version {
    name: String,
    bytes: Vec<u8>,
    signature: Option<HeaderValue>,
}

/// Larger files are refused by every gateway.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
const SIGNATURE: &str = "halley-signature";

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    if args.name.is_some() && args.files.len() > 1 {
        fail("--name names one plugin; leave it out for several files, which are named after their plugins");
        return Ok(MISTAKE);
    }
    runtime()?.block_on(push(args))
}

async fn push(args: Args) -> anyhow::Result<u8> {
    let configured = match &args.name {
        Some(_) => Vec::new(),
        None => names(&args.gateway).await?,
    };
    let mut versions = Vec::new();
    for file in &args.files {
        let name = args.name.clone().unwrap_or_else(|| name_of(file, &configured));
        versions.push(Version { name, ..read(file)? });
    }
    let request = match &mut versions[..] {
        [one] => {
            let request = args.gateway.request(Method::PUT, &["v1", "plugins", &one.name])?;
            let signed = one.signature.take().map(|signature| (SIGNATURE, signature));
            request
                .headers(signed.into_iter().map(|(n, v)| (n.parse().expect("a header's name"), v)).collect())
                .body(std::mem::take(&mut one.bytes))
        }
        several => {
            let form = several
                .iter_mut()
                .fold(Form::new(), |form, version| form.part(version.name.clone(), part(version)));
            args.gateway.request(Method::PUT, &["v1", "plugins"])?.multipart(form)
        }
    };
    let answer = args.gateway.exchange(request).await?;
    print(&in_force(&answer));
    Ok(SUCCESS)
}

fn part(version: &mut Version) -> Part {
    let mut headers = HeaderMap::new();
    if let Some(signature) = version.signature.take() {
        headers.insert(SIGNATURE, signature);
    }
    Part::bytes(std::mem::take(&mut version.bytes)).headers(headers)
}

/// The names of the gateway's plugins: in force, or left out.
async fn names(gateway: &Gateway) -> anyhow::Result<Vec<String>> {
    let status = gateway.get(&["v1", "plugins"]).await?;
    let plugins = status["plugins"].as_array().into_iter().flatten();
    let mut names: Vec<String> =
        plugins.filter_map(|plugin| plugin["name"].as_str().map(str::to_owned)).collect();
    names.extend(status["overrides"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    Ok(names)
}

/// The plugin that a file is meant for: the one of its name, where `-` and `_` are alike.
fn name_of(file: &Path, configured: &[String]) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let alike = |name: &&String| name.replace('_', "-") == stem.replace('_', "-");
    let exact = configured.iter().find(|name| **name == stem);
    exact.or_else(|| configured.iter().find(alike)).cloned().unwrap_or(stem)
}

fn read(file: &Path) -> anyhow::Result<Version> {
    let place = file.display();
    let size = std::fs::metadata(file).with_context(|| format!("{place} cannot be read"))?.len();
    anyhow::ensure!(size <= MAX_SIZE, "{place} has {size} bytes; plugins have at most {MAX_SIZE}");
    let bytes = std::fs::read(file).with_context(|| format!("{place} cannot be read"))?;
    Ok(Version { name: String::new(), bytes, signature: signature(file)? })
}

/// What stands in FILE.sig, as a header takes it.
fn signature(file: &Path) -> anyhow::Result<Option<HeaderValue>> {
    let mut path = file.as_os_str().to_owned();
    path.push(".sig");
    let path = PathBuf::from(path);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    let text = crate::policy::signature_as_text(&bytes)
        .map_err(|why| anyhow::anyhow!("{} {why}", path.display()))?;
    Ok(Some(HeaderValue::from_str(&text).context("a signature in base64 fits a header")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_to_the_plugin_of_its_name() {
        let configured = ["keyword-filter".to_owned(), "quiet_hours".to_owned()];
        let name = |file: &str| name_of(Path::new(file), &configured);
        assert_eq!(name("dist/keyword_filter.wasm"), "keyword-filter");
        assert_eq!(name("quiet_hours.wasm"), "quiet_hours");
        assert_eq!(name("quiet-hours.wasm"), "quiet_hours");
        assert_eq!(name("other.wasm"), "other", "the gateway says what it thinks of it");
    }
}
