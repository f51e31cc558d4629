//! The active value of every key, and where it comes from; for `halley config show`.

use std::path::Path;

use serde_json::Value;

use crate::config::Config;
use crate::config::environment;
use crate::config::load::{LARGEST, load, names_secret};
use crate::config::origins::Origins;
use crate::files::{self, ReadError};
use crate::mistake::Mistake;

/// The value of one key.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ActiveValue {
    /// The key, section by section; elements of `[[plugin]]` have their number.
    pub key: Vec<String>,
    /// The value. Secrets are masked.
    pub value: Value,
    /// The file and line, or the environment variable; `None` for a default.
    pub source: Option<String>,
}

/// What is shown in place of a secret.
const MASK: &str = "***";

impl Config {
    /// Every key with its value, ordered by section and key. Keys that are optional and not set are left
    /// out. `file` is the one that this configuration was loaded from.
    ///
    /// # Errors
    /// Never in practice: every configuration can be written as JSON.
    pub fn active_values(&self, file: Option<&Path>) -> Result<Vec<ActiveValue>, serde_json::Error> {
        let origins = load(file, environment::variables()).origins;
        let mut values = Vec::new();
        walk(Vec::new(), serde_json::to_value(self)?, &mut |key, value| {
            let source = origins.of(&key);
            let value = masked(&key, value);
            values.push(ActiveValue { key, value, source });
        });
        Ok(values)
    }

    /// A secret in a file that other users may read or write.
    pub(super) fn exposed_secret(&self, file: &Path, origins: &Origins) -> Option<Mistake> {
        let Err(ReadError::Exposed(why)) = files::read_secret(file, LARGEST) else { return None };
        let mut secret = None;
        walk(Vec::new(), serde_json::to_value(self).ok()?, &mut |key, value| {
            if origins.line(&key).is_some() && masked(&key, value.clone()) != value {
                secret.get_or_insert(key);
            }
        });
        let key = secret?;
        let text =
            format!("`{}` is a secret, and the file {why}; or set it in the environment", key.join("."));
        Some(Mistake { keys: vec![key], text })
    }

    /// The keys whose values differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let values = |config: &Self| config.active_values(None).unwrap_or_default();
        let (before, after) = (values(self), values(other));
        let differs = |(value, others): (&ActiveValue, &[ActiveValue])| {
            let same = |other: &ActiveValue| other.key == value.key && other.value == value.value;
            (!others.iter().any(same)).then(|| value.key.join("."))
        };
        let changed = after.iter().map(|value| (value, before.as_slice()));
        let mut keys: Vec<_> =
            changed.chain(before.iter().map(|value| (value, after.as_slice()))).filter_map(differs).collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

/// Calls `found` for every value that is not a table. Values of a table come before its tables.
fn walk(path: Vec<String>, value: Value, found: &mut impl FnMut(Vec<String>, Value)) {
    let below = |key: String| path.iter().cloned().chain([key]).collect::<Vec<_>>();
    match value {
        Value::Null => {}
        Value::Object(table) => {
            let (tables, values): (Vec<_>, Vec<_>) =
                table.into_iter().partition(|(_, value)| is_table(value));
            for (key, value) in values.into_iter().chain(tables) {
                walk(below(key), value, found);
            }
        }
        Value::Array(tables) if tables.iter().any(is_table) => {
            for (at, value) in tables.into_iter().enumerate() {
                walk(below(at.to_string()), value, found);
            }
        }
        value => found(path, value),
    }
}

fn is_table(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(elements) => elements.iter().any(is_table),
        _ => false,
    }
}

/// The value without secrets: of keys that are named like one, and the password in a URL.
fn masked(key: &[String], value: Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => Value::String(text),
        _ if names_secret(key) => MASK.into(),
        Value::String(text) => Value::String(without_password(&text)),
        Value::Array(elements) => elements.into_iter().map(|element| masked(key, element)).collect(),
        value => value,
    }
}

/// `scheme://user:***@host` for a URL with a password; any other text as it is.
fn without_password(text: &str) -> String {
    let hidden = || {
        let (scheme, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        // A password may contain `@`.
        let (user, host) = authority.rsplit_once('@')?;
        let (user, _) = user.split_once(':')?;
        Some(format!("{scheme}://{user}:{MASK}@{host}{}", &rest[authority.len()..]))
    };
    hidden().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<(String, Value, Option<String>)> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("halley.toml");
        std::fs::write(&file, text).expect("writable");
        let config = Config::load_with(Some(&file), []).expect("valid");
        let values = config.active_values(Some(&file)).expect("serializable");
        let place = |source: String| source.replace(&file.display().to_string(), "FILE");
        values.into_iter().map(|v| (v.key.join("."), v.value, v.source.map(place))).collect()
    }

    #[test]
    fn values_name_their_origin() {
        let shown =
            shown("[kafka]\ngroup = \"g\"\ntopics = [\"a\", \"b\"]\n[comets.addresses]\n\"c-1\" = \"h:1\"\n");
        let of =
            |key: &str| shown.iter().find(|(name, ..)| name == key).map(|(_, v, s)| (v.clone(), s.clone()));
        let at = |line: u32| Some(format!("FILE:{line}"));
        assert_eq!(of("kafka.group"), Some(("g".into(), at(2))));
        assert_eq!(of("kafka.topics"), Some((serde_json::json!(["a", "b"]), at(3))));
        assert_eq!(of("comets.addresses.c-1"), Some(("h:1".into(), at(5))));
        assert_eq!(of("kafka.session_timeout"), Some(("30s".into(), None)));
    }

    #[test]
    fn secrets_are_masked() {
        let shown = shown(
            "[kafka.properties]\n\"sasl.password\" = \"p4ss\"\n\"ssl.key.pem\" = \"p4ss\"\n\"sasl.username\" = \"me\"\n\
             [redis]\nurl = \"redis://u:p4ss@w@h:1/2\"\n[archive]\nurl = \"mysql://u:p4ss@h/d\"\n\
             [[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nconfig = { api_token = \"p4ss\", words = [\"w\"] }\n",
        );
        let text = format!("{shown:?}");
        assert!(!text.contains("p4ss"), "{text}");
        for kept in
            ["redis://u:***@h:1/2", "mysql://u:***@h/d", "\"me\"", "\"w\"", "plugin.0.config.api_token"]
        {
            assert!(text.contains(kept), "{kept} in {text}");
        }
    }
}
