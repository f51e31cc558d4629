//! `halley plugin publish`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prometheus_client::registry::Registry;

use crate::artifact::{self, PluginUpload, Statement, TaggedReference};
use crate::cli::plugin::author::project::EngineArgs;
use crate::cli::plugin::fetch::RegistryArgs;
use crate::cli::plugin::settings;
use crate::cli::plugin::signing::SigningArgs;
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, fail, print, usage};
use crate::digest::Digest;
use crate::wasm::{Inspection, Runtime, inspect};

/// Annotations of the manifest, next to the standard ones.
const NAME: &str = "halley.name";
const VERSION: &str = "halley.version";
const CONTRACT: &str = "halley.contract";
const HOOKS: &str = "halley.hooks";
const TITLE: &str = "org.opencontainers.image.title";
const IMAGE_VERSION: &str = "org.opencontainers.image.version";

/// Arguments of `halley plugin publish`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Where to publish it: `oci://registry/repository:tag`. A tag that exists is moved.
    #[arg(value_name = "REFERENCE")]
    reference: TaggedReference,
    /// The policy's file. The signature in FILE.sig is published along, unless --key signs it now.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let Args { reference, file, signing, registry, engine } = args;
    if reference.has_digest() {
        return usage("the reference has a digest, which only the published content decides; name a tag");
    }
    let bytes = artifact::read(&file).map_err(|why| named(&file, &why)).or_usage()?;
    let signature = match signing.sign(&bytes).or_usage()? {
        Some(signature) => Some(signature.into_bytes()),
        None => artifact::read_signature(&file).map_err(|why| named(&file, &why)).or_usage()?,
    };
    let signed = signature.as_deref().map(artifact::signed_version).transpose();
    let signed = signed.map_err(|why| anyhow::anyhow!("{} has a signature that {why}", file.display()));
    let signed = signed.or_usage()?.flatten();
    if signed.as_ref().is_some_and(|signed| signed.sha256 != Digest::of(&bytes)) {
        return usage(&format!(
            "{} was changed after it was signed; sign it again, or use --key",
            file.display()
        ));
    }
    let runtime = Runtime::with(&mut Registry::default(), engine.config()?)?;
    let inspected = inspect(&runtime, &bytes);
    if let Some(why) = &inspected.refused {
        fail(&format!("a gateway would refuse {}: it {why}; nothing was published", file.display()));
        return Ok(EXIT_FAILURE);
    }
    let upload = PluginUpload {
        plugin: bytes.into(),
        signature: signature.as_deref().map(artifact::signature_as_text).transpose()?,
        annotations: annotations(&file, &inspected, signed.as_ref()),
        is_component: inspected.form == "component",
        imports: inspected.imports.into_iter().map(|import| import.interface).collect(),
        exports: inspected.exports,
    };
    let published =
        artifact::publish(&registry.into(), &reference, &upload).map_err(|why| named(&file, &why))?;
    print(&published);
    match (&upload.signature, signed) {
        (_, Some(Statement { name, version, .. })) => {
            print(&format!("signed as version {version} of `{name}`"));
        }
        (Some(_), None) => {
            fail("warning: the signature binds neither a name nor a version; see `halley plugin sign`")
        }
        (None, _) => fail("warning: it is not signed; gateways with `[policies] trusted_keys` refuse it"),
    }
    Ok(EXIT_SUCCESS)
}

fn named(file: &Path, why: &artifact::ArtifactError) -> anyhow::Error {
    anyhow::anyhow!("{} {why}", file.display())
}

/// What is known of the plugin, for people and for tools that list what a registry has. Gateways do not
/// rely on it: they look into the plugin and its signature.
fn annotations(file: &Path, inspected: &Inspection, signed: Option<&Statement>) -> BTreeMap<String, String> {
    let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let title = signed.map_or_else(stem, |signed| signed.name.clone());
    let version = signed.map(|signed| signed.version.to_string());
    let all = [
        (TITLE, Some(title)),
        (IMAGE_VERSION, version.clone()),
        (NAME, signed.map(|signed| signed.name.clone())),
        (VERSION, version),
        (CONTRACT, inspected.contract.clone()),
        (HOOKS, Some(inspected.hooks.join(","))),
        (settings::ANNOTATION, inspected.settings.as_deref().and_then(settings::annotation)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
