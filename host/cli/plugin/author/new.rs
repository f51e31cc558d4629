//! `halley plugin new`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::cli::common;
use crate::cli::plugin::author::language::Language;
use crate::cli::plugin::author::sdk;
use crate::cli::plugin::author::template::{self, Hook};
use crate::cli::{EXIT_SUCCESS, LARGEST_INPUT, OrUsage as _, print_lines};
use crate::files;

/// Names that cargo or the project itself uses for other purposes.
const TAKEN: [&str; 7] = ["test", "core", "std", "alloc", "proc_macro", "serde", sdk::NAME];

/// Arguments of `halley plugin new`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The policy's name, such as `my-policy`.
    #[arg(value_name = "NAME")]
    name: String,
    /// The policy's hooks, separated by commas.
    #[arg(long = "hook", value_name = "HOOK", value_enum, value_delimiter = ',', default_value = "filter")]
    hooks: Vec<Hook>,
    /// The policy's language. All but Rust start with a filter, and fetch their tools during the
    /// first build.
    #[arg(long, value_name = "LANGUAGE", value_enum, default_value = "rust")]
    language: Language,
    /// The directory of the SDK (`plugins/sdk` of the repository, or of a release), which the project
    /// refers to. Default: the project contains a copy.
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
    /// The directory to create the project in. Default: named after the policy.
    #[arg(long, value_name = "FOLDER")]
    path: Option<PathBuf>,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    check(&args.name, &folder).or_usage()?;
    let mut hooks = args.hooks;
    hooks.sort_unstable();
    hooks.dedup();
    if args.language != Language::Rust {
        check_other(&hooks, args.sdk.as_deref()).or_usage()?;
        args.language.write_project(&folder, &args.name)?;
        return done(&folder);
    }
    let sdk = args.sdk.as_deref().map(sdk_at).transpose().or_usage()?;
    for (path, text) in template::files(&args.name, &hooks, sdk.as_deref()) {
        common::write(&folder.join(path), &text)?;
    }
    if sdk.is_none() {
        sdk::write_into(&folder)?;
    }
    done(&folder)
}

fn done(folder: &Path) -> anyhow::Result<u8> {
    let folder = folder.display();
    print_lines([
        &*format!("{folder} is a working policy. Next:"),
        "",
        &*format!("  cd {folder}"),
        "  halley plugin build",
        "  halley plugin test",
        "  halley plugin run < messages.jsonl",
        "",
        "See its README.md for more.",
    ]);
    Ok(EXIT_SUCCESS)
}

/// The SDK in this directory.
fn sdk_at(folder: &Path) -> anyhow::Result<String> {
    let found = folder.canonicalize().with_context(|| format!("{} not found", folder.display()))?;
    let manifest = files::read_text(&found.join("Cargo.toml"), LARGEST_INPUT).unwrap_or_default();
    ensure!(
        manifest.contains(&format!("name = \"{}\"", sdk::NAME)),
        "{} is not the SDK: its Cargo.toml is not that of {}",
        folder.display(),
        sdk::NAME
    );
    found.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{} is not UTF-8", folder.display()))
}

/// Options that do not apply to languages other than Rust.
fn check_other(hooks: &[Hook], sdk: Option<&Path>) -> anyhow::Result<()> {
    ensure!(sdk.is_none(), "`--sdk` is for projects in Rust");
    ensure!(
        hooks == [Hook::Filter],
        "projects in other languages than Rust begin with `--hook filter`; `world` in halley-plugin.toml adds hooks"
    );
    Ok(())
}

fn check(name: &str, folder: &Path) -> anyhow::Result<()> {
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    let allowed = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    ensure!(
        begins && allowed && name.len() <= 64,
        "`{name}` is not a valid policy name: use lower-case letters, digits and `-`, beginning with a letter, at most 64"
    );
    ensure!(!TAKEN.contains(&name), "`{name}` is reserved; choose another name");
    let is_free = fs::read_dir(folder).map_or(!folder.exists(), |mut entries| entries.next().is_none());
    ensure!(is_free, "{} exists already; choose another name, or --path FOLDER", folder.display());
    Ok(())
}
