//! Loads a [`Config`] from a file and the environment, and locates every mistake.
//!
//! Messages never repeat a value that may be secret: syntax errors give line and column only, and
//! values in `kafka.properties` and similar sections are not shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::config::Config;
use crate::config::environment::{self, ENVIRONMENT_PREFIX, accepts, unknown_field};
use crate::config::mistake::{ConfigError, ConfigErrors};
use crate::files;

/// Maximum size of a configuration file, in bytes.
const LARGEST: u64 = 16 * 1024 * 1024;
/// Loading stops after this many mistakes.
const MOST_MISTAKES: usize = 50;

/// A configuration as far as it can be read.
#[derive(Debug, Clone)]
pub struct ConfigReport {
    /// What could be read, with defaults for the rest.
    pub config: Config,
    /// Every mistake.
    pub mistakes: Vec<ConfigError>,
    /// Values that work but are probably a mistake.
    pub warnings: Vec<ConfigError>,
}

impl Config {
    /// Reads a file (`None` means the defaults) and applies the environment. Relative paths are
    /// resolved against the file's directory.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigErrors> {
        Self::load_with(file, environment::variables())
    }

    /// As [`Config::load`], with these environment variables.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let ConfigReport { config, mistakes, .. } = Self::inspect_with(file, environment);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }

    /// The configuration as far as it can be read, its mistakes and its warnings.
    pub fn inspect(file: Option<&Path>) -> ConfigReport {
        Self::inspect_with(file, environment::variables())
    }

    pub(super) fn inspect_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> ConfigReport {
        let LoadedConfig { mut config, mut mistakes, mut warnings } = load(file, environment);
        let base = file.and_then(Path::parent).map_or_else(PathBuf::new, Path::to_path_buf);
        config.resolve_paths(&base);
        let place = name_of(file);
        let placed = |text| ConfigError { place: place.clone(), text };
        mistakes.extend(config.validate().into_iter().map(placed));
        warnings.extend(config.warnings().into_iter().map(placed));
        ConfigReport { config, mistakes, warnings }
    }
}

/// What could be read.
pub(super) struct LoadedConfig {
    pub(super) config: Config,
    /// Every mistake found while loading.
    pub(super) mistakes: Vec<ConfigError>,
    /// Probable mistakes.
    pub(super) warnings: Vec<ConfigError>,
}

/// The name of the configuration: its file, if any.
pub(super) fn name_of(file: Option<&Path>) -> String {
    file.map_or_else(|| "configuration".to_owned(), |file| file.display().to_string())
}

/// Reads a file and applies the environment.
pub(super) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> LoadedConfig {
    let name = name_of(file);
    let nothing = |text: String| LoadedConfig {
        config: Config::default(),
        mistakes: vec![ConfigError { place: name.clone(), text }],
        warnings: Vec::new(),
    };
    let text = match file.map(|file| files::read_text(file, LARGEST)) {
        Some(Ok(text)) => text,
        Some(Err(error)) => return nothing(error.to_string()),
        None => String::new(),
    };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return nothing(format!("is not valid TOML: {}", syntax(&text, &error))),
    };
    let mut source = ConfigSource { name: name.clone(), text: &text, table, variables: BTreeMap::new() };
    let misspelled_variable = source.overlay(environment);
    let mut warnings = source.sizes_without_unit();
    warnings.extend(misspelled_variable);
    let (config, mistakes) = source.read();
    LoadedConfig { config, mistakes, warnings }
}

/// The message and position of a syntax error. The error's own text would quote the line, which may
/// contain a secret.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {message}")
}

/// The input, and the origin of each value.
struct ConfigSource<'a> {
    name: String,
    text: &'a str,
    table: Table,
    /// Environment variables with their raw text, by the path that they set.
    variables: BTreeMap<Vec<String>, (String, String)>,
}

impl ConfigSource<'_> {
    /// Applies the environment. Returns the variables that look like misspelled overrides.
    fn overlay(&mut self, environment: impl IntoIterator<Item = (String, String)>) -> Vec<ConfigError> {
        let mut misspelled_variable = Vec::new();
        for (variable, raw) in environment {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
                misspelled_variable.extend(environment::misspelled_variable(&variable));
                continue;
            };
            let path: Vec<_> = rest.split("__").map(str::to_lowercase).collect();
            // `5`, `true` and `["a"]` are parsed as TOML, everything else is text.
            let value = format!("v = {raw}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            set(&mut self.table, &path, value.unwrap_or_else(|| Value::String(raw.clone())));
            self.variables.insert(path, (variable, raw));
        }
        misspelled_variable
    }

    /// Sizes given as a bare number: they count bytes, which is rarely intended.
    fn sizes_without_unit(&self) -> Vec<ConfigError> {
        let bare = |value: &Value| match value {
            Value::String(text) => !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()),
            other => other.is_integer(),
        };
        let number = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.as_integer().unwrap_or_default().to_string(),
        };
        let warning = |path: Vec<String>| {
            let number = get(&self.table, &path).map(number).unwrap_or_default();
            let (place, key) = (self.place(&path), path.join("."));
            let text = format!(
                "`{key}` is {number} bytes, because it has no unit; add one, such as \"{number}MiB\", or \"{number}B\" if bytes are intended"
            );
            ConfigError { place, text }
        };
        leaves(&self.table, bare).into_iter().filter(|path| is_size(path)).map(warning).collect()
    }

    /// Deserializes repeatedly, each time without the last wrong value.
    fn read(mut self) -> (Config, Vec<ConfigError>) {
        let mut mistakes = Vec::new();
        while mistakes.len() < MOST_MISTAKES {
            let error = match serde_path_to_error::deserialize(self.table.clone()) {
                Ok(config) => return (config, mistakes),
                Err(error) => error,
            };
            let mut path = segments(error.path());
            let text = error.inner().message().to_owned();
            if let Some(field) = unknown_field(&text) {
                if path.last() != Some(&field) {
                    path.push(field);
                }
            } else if self.take_as_text(&path) {
                continue;
            }
            let hint = self.hint(&path, &text);
            let text = if holds_secret(&path) { without_value(&text) } else { text };
            let text = format!("`{}`: {text}{hint}", path.join("."));
            mistakes.push(ConfigError { place: self.place(&path), text });
            if !remove(&mut self.table, &path) {
                break;
            }
        }
        (Config::default(), mistakes)
    }

    /// In the environment, a group named `123` looks like a number; if that is rejected, it is text.
    /// Returns whether there is something new to try.
    fn take_as_text(&mut self, path: &[String]) -> bool {
        let Some((_, raw)) = self.variables.get(path) else { return false };
        let text = Value::String(raw.clone());
        if get(&self.table, path) == Some(&text) {
            return false;
        }
        set(&mut self.table, path, text);
        true
    }

    /// How to fix a mistake, if serde's message does not say so.
    fn hint(&self, path: &[String], message: &str) -> String {
        let is = |what| message.contains(what);
        let property = path.len() > 2 && path[0] == "kafka" && path[1] == "properties";
        let variable = self.variables.get(path).map(|(variable, _)| variable);
        let spelling = || variable.and_then(|variable| environment::right_spelling(variable));
        match () {
            () if property && is("invalid type: map") => {
                "; property names contain dots and need quotes: \"sasl.password\" = \"...\"".into()
            }
            () if property && is("expected a string") => "; put it in quotes".into(),
            () if variable.is_none() => String::new(),
            () if is("unknown field") => spelling().map_or_else(String::new, |right| format!("; {right}")),
            () if is("expected a sequence") => {
                "; in the environment a list is written as in the file: [\"a\", \"b\"]".into()
            }
            () if is("expected a map") || is("expected struct") => {
                "; in the environment a table is written inline: { key = \"value\" }".into()
            }
            () => String::new(),
        }
    }

    /// The place of a value, which a variable may have set as part of a table or a list.
    fn origin(&self, path: &[String]) -> String {
        let outer = (1..=path.len()).map(|length| &path[..length]);
        let by_variable = outer.rev().find(|outer| self.variables.contains_key(*outer));
        self.place(by_variable.unwrap_or(path))
    }

    fn place(&self, path: &[String]) -> String {
        if let Some((variable, _)) = self.variables.get(path) {
            return format!("environment variable {variable}");
        }
        match line_of(self.text, path) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Whether the value at this path must not be shown: librdkafka's properties and URLs contain
/// passwords, and so may every key that is named like a secret.
pub(super) fn holds_secret(path: &[String]) -> bool {
    let inside =
        |section: &[&str]| path.len() >= section.len() && path.iter().zip(section).all(|(a, b)| a == b);
    let is_tls = path.get(1).is_some_and(|section| section == "tls");
    let telling = ["password", "secret", "token", "key"];
    let named = path.last().is_some_and(|key| telling.iter().any(|word| key.contains(word)));
    inside(&["kafka", "properties"]) || inside(&["redis", "url"]) || is_tls || named
}

/// Whether the value of this key is a secret itself, not a list, a limit or the name of a file.
pub(super) fn names_secret(path: &[String]) -> bool {
    let Some(key) = path.last() else { return false };
    let telling = ["password", "secret", "token", "credential", "jaas", "oauthbearer.config", ".pem"];
    let is_file = key.ends_with("_file") || key.ends_with(".location");
    !is_file && telling.iter().any(|word| key.contains(word))
}

/// Where the values come from that are not defaults.
pub(super) struct ValueOrigins(Vec<(Vec<String>, String)>);

impl ValueOrigins {
    /// Reads the file and the environment again. What cannot be read sets nothing.
    pub(super) fn read(file: Option<&Path>) -> Self {
        let text = file.and_then(|file| files::read_text(file, LARGEST).ok()).unwrap_or_default();
        let table = text.parse().unwrap_or_default();
        let mut source = ConfigSource { name: name_of(file), text: &text, table, variables: BTreeMap::new() };
        drop(source.overlay(environment::variables()));
        let set = leaves(&source.table, |_| true);
        Self(set.into_iter().map(|path| (path.clone(), source.origin(&path))).collect())
    }

    /// The origin of the value at this path, or of its first element.
    pub(super) fn of(&self, path: &[String]) -> Option<String> {
        self.0.iter().find(|(set, _)| set.starts_with(path)).map(|(_, origin)| origin.clone())
    }
}

/// serde's message without the value: "invalid type: integer `5`, expected a string".
fn without_value(message: &str) -> String {
    if unknown_field(message).is_some() {
        return message.to_owned();
    }
    match message.rsplit_once("expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "this value cannot be read".to_owned(),
    }
}

/// The paths of all values that match.
fn leaves(table: &Table, wanted: impl Fn(&Value) -> bool + Copy) -> Vec<Vec<String>> {
    fn walk(path: &[String], value: &Value, wanted: &dyn Fn(&Value) -> bool, found: &mut Vec<Vec<String>>) {
        let below = |key: String| path.iter().cloned().chain([key]).collect::<Vec<_>>();
        match value {
            Value::Table(table) => {
                table.iter().for_each(|(key, value)| walk(&below(key.clone()), value, wanted, found))
            }
            Value::Array(array) => {
                array
                    .iter()
                    .enumerate()
                    .for_each(|(at, value)| walk(&below(at.to_string()), value, wanted, found));
            }
            value if wanted(value) => found.push(path.to_vec()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    table.iter().for_each(|(key, value)| walk(std::slice::from_ref(key), value, &wanted, &mut found));
    found
}

/// Whether a size is expected here: a size is accepted, but neither a duration nor any other word.
fn is_size(path: &[String]) -> bool {
    let accepts_value = |text: &str| accepts_value(path, Value::String(text.to_owned()));
    accepts_value("7 KiB") && !accepts_value("7s") && !accepts_value("word")
}

/// Whether a configuration with only this value is valid.
fn accepts_value(path: &[String], value: Value) -> bool {
    accepts(path, value).is_ok()
}

fn segments(path: &serde_path_to_error::Path) -> Vec<String> {
    let name = |segment: &Segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(name).collect()
}

fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), value)),
        [key, rest @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn get<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(table.get(first)?, |value, key| match value {
        Value::Table(table) => table.get(key),
        Value::Array(array) => array.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Removes the value at this path, or the innermost array element or table around it that can
/// be removed.
fn remove(table: &mut Table, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    match table.get_mut(key) {
        Some(Value::Table(inner)) if !rest.is_empty() => remove(inner, rest) || table.remove(key).is_some(),
        Some(Value::Array(array)) if !rest.is_empty() => {
            let index = rest[0].parse::<usize>().ok().filter(|index| *index < array.len());
            let Some(index) = index else { return table.remove(key).is_some() };
            let removed = array[index].as_table_mut().is_some_and(|inner| remove(inner, &rest[1..]));
            if !removed {
                array.remove(index);
            }
            true
        }
        Some(_) => table.remove(key).is_some(),
        None => false,
    }
}

/// The line of a key, or of the innermost table around it.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table: Option<&DeTable<'_>> = Some(root.get_ref());
    let mut array: Option<&[Spanned<DeValue<'_>>]> = None;
    let mut found = None;
    for key in path {
        let value = if let Some(elements) = array.take() {
            let element = elements.get(key.parse::<usize>().ok()?);
            found = element.map(|element| element.span().start).or(found);
            element
        } else {
            let entry = table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
            found = entry.map(|(name, _)| name.span().start).or(found);
            entry.map(|(_, value)| value)
        };
        let Some(value) = value else { break };
        table = value.get_ref().as_table();
        array = value.get_ref().as_array().map(|array| &array[..]);
    }
    found.map(|offset| text[..offset].matches('\n').count() + 1)
}
