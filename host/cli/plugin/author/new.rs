//! `halley plugin new`.

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;

use crate::cli::plugin::author::template::{self, Hook};
use crate::cli::plugin::author::{project, sdk};
use crate::cli::{SUCCESS, print};

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
    for (path, text) in template::files(&args.name, &hooks) {
        project::write(&folder.join(path), &text)?;
    }
    sdk::write_into(&folder)?;
    let folder = folder.display();
    print(&format!(
        "{folder} is a policy that works. Next:\n\n  cd {folder}\n  halley plugin build\n  halley plugin test\n  \
         halley plugin run < messages.jsonl\n\nIts README.md says the rest."
    ));
    Ok(SUCCESS)
}

fn check(name: &str, folder: &std::path::Path) -> anyhow::Result<()> {
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
