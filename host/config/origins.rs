//! Where the values of a configuration come from: the lines of its file, and environment variables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::mistake::ConfigError;

/// The origins of all values that are not defaults, by their keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    /// The name of the configuration: its file, if any.
    name: String,
    text: String,
    /// The lines of all keys, tables and elements of lists in the text, as soon as one is asked for: most
    /// configurations have no mistake, and lists may be long.
    lines: OnceLock<BTreeMap<Vec<String>, usize>>,
    variables: BTreeMap<Vec<String>, String>,
    /// Variables that have a token themselves, by the keys that name its file.
    tokens: BTreeMap<Vec<String>, String>,
}

impl Origins {
    /// Of an empty configuration with this file.
    pub(super) fn new(file: Option<&Path>) -> Self {
        let name = file.map_or_else(|| "configuration".to_owned(), |file| file.display().to_string());
        Self { name, ..Self::default() }
    }

    /// The file has this text.
    pub(super) fn set_text(&mut self, text: &str) {
        text.clone_into(&mut self.text);
    }

    fn lines(&self) -> &BTreeMap<Vec<String>, usize> {
        self.lines.get_or_init(|| {
            let ends: Vec<usize> = self.text.match_indices('\n').map(|(at, _)| at).collect();
            let line = |offset: usize| ends.partition_point(|end| *end < offset) + 1;
            let mut lines = BTreeMap::new();
            if let Ok(table) = DeTable::parse(&self.text) {
                walk_table(&mut Vec::new(), table.get_ref(), &mut |path, offset| {
                    lines.insert(path.to_vec(), line(offset));
                });
            }
            lines
        })
    }

    /// Adds a variable that has the token which this key names a file of.
    pub(super) fn add_token(&mut self, path: Vec<String>, variable: String) {
        self.tokens.insert(path, variable);
    }

    /// Adds a variable that sets the value at this path.
    pub(super) fn add_variable(&mut self, path: Vec<String>, variable: String) {
        self.variables.insert(path, variable);
    }

    /// The variable that sets exactly this value.
    pub(super) fn variable(&self, path: &[String]) -> Option<&str> {
        self.variables.get(path).map(String::as_str)
    }

    /// A mistake about a value, with the place of the first of these keys that is set, or of the nearest
    /// table around the first one.
    pub(super) fn locate(&self, keys: &[Vec<String>], text: String) -> ConfigError {
        let around =
            keys.first().into_iter().flat_map(|key| (0..key.len()).rev().map(|length| &key[..length]));
        let token = keys.iter().find_map(|key| self.tokens.get(key));
        let token = token.map(|variable| (format!("environment variable {variable}"), None));
        let find = || keys.iter().map(Vec::as_slice).chain(around).find_map(|key| self.find(key));
        let place = token.or_else(find);
        let (place, line) = place.unwrap_or_else(|| (self.name.clone(), None));
        ConfigError { place, line, key: keys.first().cloned().unwrap_or_default(), text }
    }

    /// The place of the value at this path, which a variable may have set as a part of a table or a list;
    /// `None` for a default.
    pub(super) fn of(&self, path: &[String]) -> Option<String> {
        self.find(path).map(|(place, _)| place)
    }

    /// The line of the value at this path; `None` if it is not from the file.
    pub(super) fn line(&self, path: &[String]) -> Option<usize> {
        self.find(path)?.1
    }

    fn find(&self, path: &[String]) -> Option<(String, Option<usize>)> {
        let variable = (1..=path.len()).rev().find_map(|length| self.variables.get(&path[..length]));
        if let Some(variable) = variable {
            return Some((format!("environment variable {variable}"), None));
        }
        let line = *self.lines().get(path)?;
        Some((format!("{}:{line}", self.name), Some(line)))
    }
}

type Found<'f> = dyn FnMut(&[String], usize) + 'f;

/// Calls `found` with the path and the offset of each key and element.
fn walk_table(path: &mut Vec<String>, table: &DeTable<'_>, found: &mut Found<'_>) {
    for (key, value) in table {
        walk(path, key.get_ref().to_string(), key.span().start, value, found);
    }
}

fn walk(
    path: &mut Vec<String>,
    key: String,
    offset: usize,
    value: &Spanned<DeValue<'_>>,
    found: &mut Found<'_>,
) {
    path.push(key);
    found(path, offset);
    match value.get_ref() {
        DeValue::Table(table) => walk_table(path, table, found),
        DeValue::Array(elements) => {
            for (at, element) in elements.iter().enumerate() {
                walk(path, at.to_string(), element.span().start, element, found);
            }
        }
        _ => {}
    }
    path.pop();
}
