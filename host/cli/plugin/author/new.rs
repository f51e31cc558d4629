//! `halley plugin new`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::cli::common;
use crate::cli::plugin::author::language::Language;
use crate::cli::plugin::author::template::{self, Hook};
use crate::cli::plugin::author::{project, sdk};
use crate::cli::{LARGEST_INPUT, SUCCESS, print_lines};
use crate::files;

/// Names that cargo, or the project itself, has for other things.
const TAKEN: [&str; 7] = ["test", "core", "std", "alloc", "proc_macro", "serde", sdk::NAME];

/// Arguments of `halley plugin new`.
#[derive(Debug, clap::Args)]
pub(in crate::cli::plugin) struct Args {
    /// The policy's name, such as `my-policy`.
    #[arg(value_name = "NAME")]
    name: String,
    /// The hooks that it has; several with commas between them.
    #[arg(long = "hook", value_name = "HOOK", value_enum, value_delimiter = ',', default_value = "filter")]
    hooks: Vec<Hook>,
    /// The language that it is written in. All but Rust begin with a filter, and fetch their tools
    /// when they are built first.
    #[arg(long, value_name = "LANGUAGE", value_enum, default_value = "rust")]
    language: Language,
    /// The folder of the SDK (`plugins/sdk` of the repository, or of a release), which the project
    /// refers to. Without it, the project brings its own copy along.
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
    /// The folder that the project is made in. Without it, one that is called as the policy is.
    #[arg(long, value_name = "FOLDER")]
    path: Option<PathBuf>,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    if let Err(mistake) = check(&args.name, &folder) {
        return Ok(project::mistake(&mistake));
    }
    let mut hooks = args.hooks;
    hooks.sort_unstable();
    hooks.dedup();
    if args.language != Language::Rust {
        if let Err(mistake) = check_other(&hooks, args.sdk.as_deref()) {
            return Ok(project::mistake(&mistake));
        }
        args.language.write_project(&folder, &args.name)?;
        return done(&folder);
    }
    let sdk = match args.sdk.as_deref().map(sdk_at).transpose() {
        Ok(sdk) => sdk,
        Err(mistake) => return Ok(project::mistake(&mistake)),
    };
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
        &*format!("{folder} is a policy that works. Next:"),
        "",
        &*format!("  cd {folder}"),
        "  halley plugin build",
        "  halley plugin test",
        "  halley plugin run < messages.jsonl",
        "",
        "Its README.md says the rest.",
    ]);
    Ok(SUCCESS)
}

/// The SDK in this folder.
fn sdk_at(folder: &Path) -> anyhow::Result<String> {
    let found = folder.canonicalize().with_context(|| format!("there is no {}", folder.display()))?;
    let manifest = files::read_text(&found.join("Cargo.toml"), LARGEST_INPUT).unwrap_or_default();
    ensure!(
        manifest.contains(&format!("name = \"{}\"", sdk::NAME)),
        "{} is not the SDK: its Cargo.toml is not that of {}",
        folder.display(),
        sdk::NAME
    );
    found.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{} is not UTF-8", folder.display()))
}

/// What makes no sense for other languages than Rust.
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
        "`{name}` cannot be a policy's name: take small letters, digits and `-`, a letter first, at most 64"
    );
    ensure!(!TAKEN.contains(&name), "`{name}` is the name of something else; take another one");
    let is_free = fs::read_dir(folder).map_or(!folder.exists(), |mut entries| entries.next().is_none());
    ensure!(is_free, "{} is there already; give another name, or --path FOLDER", folder.display());
    Ok(())
}
