//! Loads a [`Config`] from a file and the environment, and locates every mistake.
//!
//! Messages never repeat a value that may be secret: syntax errors give line and column only, and
//! values in `kafka.properties` and similar sections are not shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_path_to_error::Segment;
use toml::de::DeTable;
use toml::{Deserializer, Table, Value};

use crate::config::Config;
use crate::config::admin::TOKEN_VARIABLES;
use crate::config::environment::{self, ENVIRONMENT_PREFIX, accepts, unknown_field};
use crate::config::mistake::{ConfigError, ConfigErrors};
use crate::config::origins::Origins;
use crate::config::tables::{get, leaves, lists_for_tables, remove, set};
use crate::config::words::in_toml_words;
use crate::files;
use crate::mistake::Mistake;

/// Maximum size of a configuration file, in bytes.
pub(super) const LARGEST: u64 = 16 * 1024 * 1024;
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
    /// Where its values come from.
    pub(super) origins: Origins,
}

impl ConfigReport {
    /// Adds mistakes that were found later, in the order of their lines. One about a key that is mistaken
    /// already, or that was derived from such a key, is left out: it may follow from the default in its place.
    pub fn add(&mut self, found: impl IntoIterator<Item = Mistake>) {
        let found = self.located(found);
        self.mistakes.extend(found);
        self.mistakes.sort_by_key(|mistake| mistake.line);
    }

    fn located(&self, found: impl IntoIterator<Item = Mistake>) -> Vec<ConfigError> {
        let overlap = |one: &[String], other: &[String]| one.iter().zip(other).all(|(a, b)| a == b);
        let is_known = |key: &Vec<String>| self.mistakes.iter().any(|mistake| overlap(key, &mistake.key));
        let new = found.into_iter().filter(|mistake| !mistake.keys.iter().any(is_known));
        new.map(|mistake| self.origins.locate(&mistake.keys, mistake.text)).collect()
    }
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
        let mut report = load(file, environment);
        let base = file.and_then(Path::parent).map_or_else(PathBuf::new, Path::to_path_buf);
        report.config.resolve_paths(&base);
        report.add(report.config.validate());
        report.add(report.config.contradictions());
        let exposed = file.and_then(|file| report.config.exposed_secret(file, &report.origins));
        let warnings = report.located(report.config.warnings().into_iter().chain(exposed));
        report.warnings.extend(warnings);
        report
    }
}

/// Reads a file and applies the environment.
pub(super) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> ConfigReport {
    let mut source = ConfigSource { table: Table::new(), raw: BTreeMap::new(), origins: Origins::new(file) };
    let read = match file.map(|file| files::read_text(file, LARGEST)) {
        Some(Ok(text)) => source.read_text(&text).err(),
        Some(Err(error)) => Some(source.origins.locate(&[], error.to_string())),
        None => None,
    };
    if let Some(unreadable) = read {
        let (mistakes, warnings) = (vec![unreadable], Vec::new());
        return ConfigReport { config: Config::default(), mistakes, warnings, origins: source.origins };
    }
    let misspelled_variables = source.overlay(environment);
    let mut warnings = source.sizes_without_unit();
    warnings.extend(misspelled_variables);
    let (config, mistakes) = source.read();
    warnings.retain(|warning| mistakes.iter().all(|mistake| mistake.key != warning.key));
    ConfigReport { config, mistakes, warnings, origins: source.origins }
}

/// The input, and the origin of each value.
struct ConfigSource {
    table: Table,
    /// The raw text of environment variables, by the path that they set.
    raw: BTreeMap<Vec<String>, String>,
    origins: Origins,
}

impl ConfigSource {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The syntax error.
    fn read_text(&mut self, text: &str) -> Result<(), ConfigError> {
        self.origins.set_text(text);
        let read = DeTable::parse(text).and_then(|parsed| Table::deserialize(Deserializer::from(parsed)));
        self.table = read.map_err(|error| self.syntax(text, &error))?;
        Ok(())
    }

    /// A syntax error. Its own text would quote the line, which may contain a secret.
    fn syntax(&self, text: &str, error: &toml::de::Error) -> ConfigError {
        let message = error.message().replace('\n', ", ");
        let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
            return self.origins.locate(&[], format!("is not valid TOML: {message}"));
        };
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let text = format!("is not valid TOML: line {line}, column {column}: {message}");
        let error = self.origins.locate(&[], text);
        ConfigError { place: format!("{}:{line}", error.place), line: Some(line), ..error }
    }

    /// Applies the environment. Returns the variables that look like misspelled overrides.
    fn overlay(&mut self, environment: impl IntoIterator<Item = (String, String)>) -> Vec<ConfigError> {
        let mut misspelled_variable = Vec::new();
        for (variable, raw) in environment {
            if let Some((_, key)) = TOKEN_VARIABLES.iter().find(|(name, _)| *name == variable) {
                self.origins.add_token(vec!["admin".to_owned(), (*key).to_owned()], variable);
                continue;
            }
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
                misspelled_variable.extend(environment::misspelled_variable(&variable));
                continue;
            };
            let path: Vec<_> = rest.split("__").map(str::to_lowercase).collect();
            // `5`, `true` and `["a"]` are parsed as TOML, everything else is text.
            let value = format!("v = {raw}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            set(&mut self.table, &path, value.unwrap_or_else(|| Value::String(raw.clone())));
            self.raw.insert(path.clone(), raw);
            self.origins.add_variable(path, variable);
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
            let key = self.shown(&path);
            let text = format!(
                "{key} is {number} bytes, because it has no unit; add one, such as \"{number}MiB\", or \"{number}B\" if bytes are intended"
            );
            self.origins.locate(&[path], text)
        };
        leaves(&self.table, bare).into_iter().filter(|path| is_size(path)).map(warning).collect()
    }

    /// Deserializes repeatedly, each time without the last wrong value.
    fn read(&mut self) -> (Config, Vec<ConfigError>) {
        let mut mistakes = Vec::new();
        let defaults = Table::try_from(Config::default()).unwrap_or_default();
        for path in lists_for_tables(&defaults, &self.table) {
            let hint = self.hint(&path, "expected a map");
            let text = format!("{} is a list; expected a table{hint}", self.shown(&path));
            mistakes.push(self.origins.locate(std::slice::from_ref(&path), text));
            remove(&mut self.table, &path);
        }
        while mistakes.len() < MOST_MISTAKES {
            let error = match serde_path_to_error::deserialize(self.table.clone()) {
                Ok(config) => return (config, mistakes),
                Err(error) => error,
            };
            let mut path = segments(error.path());
            let text = match get(&self.table, &path) {
                Some(value) => with_known_words(&path, value, error.inner().message()),
                None => error.inner().message().to_owned(),
            };
            if let Some(field) = unknown_field(&text) {
                if path.last() != Some(&field) {
                    path.push(field);
                }
            } else if self.take_as_text(&path) {
                continue;
            }
            let hint = self.hint(&path, &text);
            let text = if holds_secret(&path) { without_value(&text) } else { text };
            let text = format!("{}{}{hint}", self.shown(&path), in_toml_words(&text));
            mistakes.push(self.origins.locate(std::slice::from_ref(&path), text));
            if !remove(&mut self.table, &path) {
                break;
            }
        }
        (Config::default(), mistakes)
    }

    /// In the environment, a group named `123` looks like a number; if that is rejected, it is text.
    /// Returns whether there is something new to try.
    fn take_as_text(&mut self, path: &[String]) -> bool {
        let Some(raw) = self.raw.get(path) else { return false };
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
        let variable = self.origins.variable(path);
        let spelling = || variable.and_then(environment::right_spelling);
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

    /// A key in a sentence. Plugins have their names.
    fn shown(&self, path: &[String]) -> String {
        let at = match path {
            [section, at, ..] if section == "plugin" => at.parse::<usize>().ok(),
            _ => None,
        };
        let Some(at) = at else { return format!("`{}`", path.join(".")) };
        let name = self.table.get("plugin").and_then(|plugins| plugins.get(at)?.get("name")?.as_str());
        let plugin =
            name.map_or_else(|| format!("plugin number {}", at + 1), |name| format!("plugin `{name}`"));
        if path.len() == 2 { plugin } else { format!("`{}` of {plugin}", path[2..].join(".")) }
    }
}

/// The message about this value. If it is no text where one of some words is expected, serde does not
/// name them; as text, it would.
fn with_known_words(path: &[String], value: &Value, message: &str) -> String {
    if !message.contains("expected string only") && !message.starts_with("wanted exactly 1 element") {
        return message.to_owned();
    }
    let text = serde_json::to_string(value).unwrap_or_default();
    let refused = accepts(path, Value::String(text)).err();
    refused.map_or_else(|| message.to_owned(), |error| error.message().to_owned())
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
