//! `halley plugin verify`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::artifact::{self, Artifact, PluginTrust, TaggedReference, TrustedKey};
use crate::cli::plugin::fetch::RegistryArgs;
use crate::cli::{EXIT_SUCCESS, OrUsage as _, print};
use crate::digest::Digest;

/// Arguments of `halley plugin verify`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The plugin: a file, with its signature in FILE.sig, or `oci://registry/repository:tag`.
    #[arg(value_name = "FILE|REFERENCE")]
    plugin: String,
    /// A file with ed25519 public keys (PEM), as in `[policies] trusted_keys`. May be repeated: one of
    /// the keys must have signed.
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// The name that it must be signed for. Default: whatever the signature says.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let Args { plugin, key, name, registry } = args;
    let failed = |why: &dyn std::fmt::Display| anyhow::anyhow!("{plugin} {why}");
    let (shown, artifact) = if plugin.contains("://") {
        let reference: TaggedReference =
            plugin.parse().map_err(|why| anyhow::anyhow!("{plugin}: {why}")).or_usage()?;
        let fetched = artifact::fetch_now(&registry.into(), &reference).map_err(|why| failed(&why))?;
        (fetched.reference, fetched.artifact)
    } else {
        let file = PathBuf::from(&plugin);
        let bytes = artifact::read(&file).map_err(|why| failed(&why)).or_usage()?;
        let signature = artifact::read_signature(&file).map_err(|why| failed(&why))?;
        (plugin.clone(), Artifact { bytes: bytes.into(), signature: signature.map(Arc::from) })
    };
    let signature = artifact.signature.as_deref();
    let stated = signature.and_then(|signature| artifact::signed_version(signature).ok()?);
    let name = name.or_else(|| stated.map(|stated| stated.name)).unwrap_or_default();
    let trust = PluginTrust::new(key.into_iter().map(TrustedKey::File).collect()).named_by("--key");
    let version = trust.check(&name, &artifact.bytes, signature, None).map_err(|why| failed(&why))?;
    print(&shown);
    let version = version.map_or_else(String::new, |version| format!("version {version} of "));
    print(&format!("signed as {version}`{name}` by a key of --key (sha256 {})", Digest::of(&artifact.bytes)));
    Ok(EXIT_SUCCESS)
}
