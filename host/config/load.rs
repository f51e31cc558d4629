//! From text and environment to a [`Config`], with the place of every mistake.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::config::{Config, ENVIRONMENT_PREFIX};

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// `file:line`, or the environment variable.
    pub place: String,
    /// What is wrong, and where it is not plain, what to do.
    pub text: String,
}

/// All mistakes that were found; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Mistake { place, text }) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{place}: {text}")?;
        }
        Ok(())
    }
}

/// Loading stops counting here; a file with more mistakes is not a configuration.
const MOST_MISTAKES: usize = 50;

/// What could be read, and every mistake on the way there.
pub(super) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> (Config, Vec<Mistake>) {
    let name = file.map_or_else(|| "configuration".to_owned(), |file| file.display().to_string());
    let nothing = |text: String| (Config::default(), vec![Mistake { place: name.clone(), text }]);
    let text = match file.map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) => return nothing(format!("cannot be read: {error}")),
        None => String::new(),
    };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return nothing(format!("is not TOML: {error}")),
    };
    let mut source = Source { name: name.clone(), text: &text, table, variables: BTreeMap::new() };
    source.overlay(environment);
    source.read()
}

/// What is being read, and where each value came from.
struct Source<'a> {
    name: String,
    text: &'a str,
    table: Table,
    /// Environment variables by the path that they set, with their raw text.
    variables: BTreeMap<Vec<String>, (String, String)>,
}

impl Source<'_> {
    fn overlay(&mut self, environment: impl IntoIterator<Item = (String, String)>) {
        for (variable, raw) in environment {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let path: Vec<_> = rest.split("__").map(str::to_lowercase).collect();
            // `5`, `true` and `["a"]` are what they look like, everything else is text.
            let value = format!("v = {raw}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            set(&mut self.table, &path, value.unwrap_or_else(|| Value::String(raw.clone())));
            self.variables.insert(path, (variable, raw));
        }
    }

    /// Reads the table again and again, each time without the value that was wrong last.
    fn read(mut self) -> (Config, Vec<Mistake>) {
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
            mistakes
                .push(Mistake { place: self.place(&path), text: format!("`{}`: {text}", path.join(".")) });
            if !remove(&mut self.table, &path) {
                break;
            }
        }
        (Config::default(), mistakes)
    }

    /// A group named `123` looks like a number in the environment: where that is wrong it is
    /// text after all. Returns whether there is something new to try.
    fn take_as_text(&mut self, path: &[String]) -> bool {
        let Some((_, raw)) = self.variables.get(path) else { return false };
        let text = Value::String(raw.clone());
        if get(&self.table, path) == Some(&text) {
            return false;
        }
        set(&mut self.table, path, text);
        true
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

/// serde has no structured form of this: its message begins with "unknown field `name`".
fn unknown_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    Some(rest.split('`').next()?.to_owned())
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

/// Takes out the value at this path, or the innermost array element or table around it that
/// can be taken out.
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

/// The line on which a key stands, or the innermost table around it.
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
