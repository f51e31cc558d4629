//! The demo's policies: a folder with a configuration, laid out as an operator would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::LARGEST_INPUT;
use crate::files;
use crate::message::CometAddr;

/// The built policies on this machine.
pub(super) struct BundledPolicies {
    built: PathBuf,
}

/// The file by which a folder with the bundled policies is recognised.
const KEYWORD_FILTER: &str = "keyword_filter.wasm";

impl BundledPolicies {
    /// Looks in the given folder, or else in `plugins/dist` here and in the folders above the binary.
    pub(super) fn find(named: Option<&Path>) -> Option<Self> {
        let binary = std::env::current_exe().ok();
        let around = binary.iter().flat_map(|binary| binary.ancestors().skip(1));
        let candidates: Vec<_> = match named {
            Some(named) => vec![named.to_path_buf()],
            None => std::iter::once(Path::new("")).chain(around).map(|p| p.join("plugins/dist")).collect(),
        };
        let built = candidates.into_iter().find(|folder| folder.join(KEYWORD_FILTER).is_file())?;
        Some(Self { built })
    }

    /// Creates an operator's folder: `halley.toml`, and an empty `policies/`.
    pub(super) fn set_up(self, brokers: &str, comets: &[CometAddr]) -> anyhow::Result<DemoFolder> {
        let root = std::env::temp_dir().join(format!("halley-demo-{}", std::process::id()));
        fs::create_dir_all(root.join("policies"))
            .with_context(|| format!("cannot create {}", root.display()))?;
        let nodes: Vec<_> = comets.iter().map(|comet| format!("\"{comet}\"")).collect();
        let settings = format!(
            "[kafka]\nbrokers = \"{brokers}\"\n\n[redis]\nurl = \"memory://\"\n\n[comets]\nnodes = [{}]\n\n\
             [admin]\nlisten = \"127.0.0.1:0\"\nsocket = \"admin.sock\"\n\n[policies]\ndirectory = \"policies\"\n",
            nodes.join(", ")
        );
        let folder = DemoFolder { root, built: self.built, settings };
        folder.configure("")?;
        Ok(folder)
    }
}

/// The operator's folder. Removed on drop.
pub(super) struct DemoFolder {
    root: PathBuf,
    built: PathBuf,
    /// The configuration without the plugins.
    settings: String,
}

impl DemoFolder {
    /// The configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.root.join("halley.toml")
    }

    /// The socket for `halley plugin`.
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("admin.sock")
    }

    /// Where policies are dropped.
    pub(super) fn policies(&self) -> PathBuf {
        self.root.join("policies")
    }

    /// Copies the bundled keyword filter into the folder.
    pub(super) fn install_keyword_filter(&self) -> anyhow::Result<()> {
        let module = files::read(&self.built.join(KEYWORD_FILTER), LARGEST_INPUT)?;
        self.replace("policies/keyword_filter.wasm", &module)
    }

    /// Replaces the filter with a broken file.
    pub(super) fn break_keyword_filter(&self) -> anyhow::Result<()> {
        self.replace("policies/keyword_filter.wasm", b"this is not WebAssembly")
    }

    /// Masks `spam` with this character.
    pub(super) fn mask_with(&self, mask: char) -> anyhow::Result<()> {
        self.configure(&format!(
            "[[plugin]]\nname = \"keyword-filter\"\npath = \"policies/keyword_filter.wasm\"\n\
             config = {{ words = [\"spam\"], action = \"mask\", mask = \"{mask}\" }}\n"
        ))
    }

    fn configure(&self, plugins: &str) -> anyhow::Result<()> {
        let text = format!("{}\n{plugins}", self.settings);
        self.replace("halley.toml", text.as_bytes())
    }

    /// Writes a temporary file and renames it, so that the gateway never sees half a file.
    fn replace(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let (target, fresh) = (self.root.join(name), self.root.join("fresh.tmp"));
        fs::write(&fresh, content).and_then(|()| fs::rename(&fresh, &target))?;
        Ok(())
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.root));
    }
}
