//! The cookbook in `plugins/README.md` is correct: its code is that of the crates, and every recipe loads
//! with the configuration shown there.

use halley::policy::{PluginConfig, Policies};
use halley::wasm::Runtime;

use crate::support::repository;

const RECIPES: [&str; 8] = [
    "mask-words",
    "calm-rooms",
    "room-quota",
    "regional-rooms",
    "retire-comet",
    "quiet-hours",
    "keep-important",
    "ab-routing",
];

/// The cookbook's part of the page.
fn cookbook() -> String {
    let page = std::fs::read_to_string(repository("plugins/README.md")).expect("a page");
    let (_, rest) = page.split_once("\n## Cookbook\n").expect("a cookbook");
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

/// The content of the code blocks in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let opened = page.split(&fence).skip(1);
    opened.map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
}

/// A recipe's source without its first comment and its tests.
fn code(recipe: &str) -> String {
    let source = std::fs::read_to_string(repository(&format!("plugins/cookbook/{recipe}/src/lib.rs")))
        .expect("a recipe");
    let shown = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines: Vec<&str> = shown.lines().filter(|line| !line.starts_with("//!")).collect();
    lines.join("\n").trim().to_owned()
}

#[test]
fn the_cookbook_shows_the_code_that_is_tested() {
    let shown = blocks(&cookbook(), "rust");
    assert_eq!(shown.len(), RECIPES.len());
    for (recipe, shown) in RECIPES.iter().zip(shown) {
        assert_eq!(shown, code(recipe), "plugins/README.md and plugins/cookbook/{recipe}/src/lib.rs");
    }
}

#[test]
fn every_recipe_loads_with_the_configuration_that_is_shown() {
    #[derive(serde::Deserialize)]
    struct Shown {
        plugin: Vec<PluginConfig>,
    }
    let mut plugins = Vec::new();
    for block in blocks(&cookbook(), "toml") {
        let shown: Shown = toml::from_str(&block).unwrap_or_else(|error| panic!("{error}:\n{block}"));
        for plugin in shown.plugin {
            let path = repository(&plugin.path.to_string());
            assert!(path.is_file(), "{} is not there; run `make plugins`", path.display());
            plugins.push(PluginConfig { path: path.into(), ..plugin });
        }
    }
    let names: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    assert_eq!(names, RECIPES);
    let runtime = Runtime::new(&mut prometheus_client::registry::Registry::default()).expect("an engine");
    Policies::start(runtime, &plugins).unwrap_or_else(|refused| panic!("{refused}"));
}
