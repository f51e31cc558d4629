//! `halley plugin fetch`.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::artifact::{self, FetchedPlugin, RegistryConfig, Statement, TaggedReference};
use crate::cli::plugin::settings;
use crate::cli::{EXIT_SUCCESS, print, print_lines, usage};
use crate::files;
use crate::settings::SettingsSchema;

/// How registries may be asked.
#[derive(Debug, clap::Args)]
pub(in crate::cli::plugin) struct RegistryArgs {
    /// A site that the registry may redirect to, or that issues its tokens: as in `[policies.registry]
    /// trusted_hosts`.
    #[arg(long, value_name = "HOST")]
    trusted_host: Vec<String>,
}

impl From<RegistryArgs> for RegistryConfig {
    fn from(RegistryArgs { trusted_host }: RegistryArgs) -> Self {
        Self { trusted_hosts: trusted_host }
    }
}

/// Arguments of `halley plugin fetch`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The plugin in a registry: `oci://registry/repository:tag`, or with `@sha256:...`.
    #[arg(value_name = "REFERENCE")]
    reference: TaggedReference,
    /// The file to write; one that exists is replaced. Its signature is written next to it, into
    /// FILE.sig. Default: the last part of the repository, with `.wasm`, which must not exist.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let file = match args.output {
        Some(file) => file,
        None => {
            let file = PathBuf::from(format!("{}.wasm", args.reference.name()));
            if file.exists() {
                return usage(&format!("{} exists; name a file with -o", file.display()));
            }
            file
        }
    };
    let fetched = artifact::fetch_now(&args.registry.into(), &args.reference);
    let FetchedPlugin { reference, artifact, annotations } =
        fetched.map_err(|why| anyhow::anyhow!("{} {why}", args.reference))?;
    let place = artifact::signature_file(&file);
    let signed = artifact.signature.as_deref().map(artifact::signed_version).transpose();
    let signed = signed.map_err(|why| anyhow::anyhow!("{reference} has a signature that {why}"))?;
    let cannot = |file: &std::path::Path| format!("{} cannot be written", file.display());
    files::publish(&file, &artifact.bytes).with_context(|| cannot(&file))?;
    match &artifact.signature {
        Some(signature) => files::publish(&place, signature).with_context(|| cannot(&place))?,
        // A signature that is left there is of another version.
        None if place.exists() => std::fs::remove_file(&place).with_context(|| cannot(&place))?,
        None => {}
    }
    print(&reference);
    print(&match signed {
        Some(Some(Statement { name, version, .. })) => format!(
            "{}: signed as version {version} of `{name}`; `halley plugin verify` checks by whom",
            file.display()
        ),
        Some(None) => format!("{}: signed, without a name and a version", file.display()),
        None => format!("{}: not signed", file.display()),
    });
    if let Some(text) = annotations.get(settings::ANNOTATION) {
        print("settings, as its publisher states; `halley plugin inspect` asks the plugin:");
        match SettingsSchema::parse(text) {
            Ok(schema) => print_lines(settings::table(&schema)),
            Err(why) => print(&format!("  the schema {why}")),
        }
    }
    Ok(EXIT_SUCCESS)
}
