//! Environment variables: overrides, and variables that look like misspelled ones.

use std::ffi::OsString;

use toml::{Table, Value};

use crate::config::Config;
use crate::config::mistake::ConfigError;

/// The prefix of environment overrides: `HALLEY__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "HALLEY__";

/// Prefix of this program's variables, including the overrides.
const HALLEY_NAME: &str = "HALLEY";

/// The variables that are overrides or may be meant as such. Uses `vars_os`, because `vars` panics if
/// any variable is not UTF-8. Invalid UTF-8 in ours is replaced, and fails validation.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    std::env::vars_os().map(text).filter(|(name, _)| name.to_uppercase().starts_with(HALLEY_NAME))
}

/// The mistake in a variable that is not an override but matches one except for underscores and case:
/// `HALLEY_KAFKA_GROUP`. Other variables with this prefix may belong to anyone: container platforms
/// name variables after services.
pub(super) fn misspelled_variable(variable: &str) -> Option<ConfigError> {
    let text = format!("is ignored; {}", right_spelling(variable)?);
    Some(ConfigError { place: format!("environment variable {variable}"), line: None, key: Vec::new(), text })
}

/// The correct spelling of a variable that matches a key except for underscores and case.
pub(super) fn right_spelling(variable: &str) -> Option<String> {
    let upper = variable.to_uppercase();
    let words: Vec<&str> =
        upper.strip_prefix(HALLEY_NAME)?.split('_').filter(|word| !word.is_empty()).collect();
    // Tries every way to join the words into sections and a key: each gap is `_` or `__`.
    let gaps = u32::try_from(words.len()).ok().filter(|words| (2..=MOST_WORDS).contains(words))? - 1;
    let path = (1..1_u32 << gaps).map(|cuts| path(&words, cuts)).find(|path| is_key(path))?;
    let right = format!("{ENVIRONMENT_PREFIX}{}", path.join("__").to_uppercase());
    Some(format!("write {right} for `{}`", path.join(".")))
}

/// Maximum number of words in a key.
const MOST_WORDS: u32 = 8;

/// Joins the words, starting a new part at each set bit of `cuts`.
fn path(words: &[&str], cuts: u32) -> Vec<String> {
    let mut path = vec![words[0].to_lowercase()];
    for (gap, word) in words[1..].iter().enumerate() {
        let word = word.to_lowercase();
        match path.last_mut() {
            Some(last) if cuts & (1 << gap) == 0 => *last = format!("{last}_{word}"),
            _ => path.push(word),
        }
    }
    path
}

/// Whether this path is a key: the error about a test value must not be that the key is unknown.
fn is_key(path: &[String]) -> bool {
    // Tables with free keys accept anything; an override of those needs two underscores.
    let named = path.starts_with(&["kafka".into(), "properties".into()])
        || path.starts_with(&["comets".into(), "addresses".into()]);
    let is_none = |error: toml::de::Error| {
        let error = error.message();
        unknown_field(error).is_some() || error.contains("struct") || error.contains("sequence")
    };
    !named && !accepts(path, Value::String("x".to_owned())).is_err_and(is_none)
}

/// Deserializes a configuration with only this value.
///
/// # Errors
/// serde's error.
pub(super) fn accepts(path: &[String], value: Value) -> Result<(), toml::de::Error> {
    let value = path.iter().rev().fold(value, |inner, key| match key.parse::<usize>() {
        // An element of a list is accepted alone, too.
        Ok(_) => Value::Array(vec![inner]),
        Err(_) => Value::Table(Table::from_iter([(key.clone(), inner)])),
    });
    value.try_into::<Config>().map(drop)
}

/// serde has no structured form of this error: its message begins with "unknown field `name`".
pub(super) fn unknown_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    Some(rest.split('`').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_variable_is_corrected() {
        for (variable, right) in [
            ("HALLEY_KAFKA_GROUP", "HALLEY__KAFKA__GROUP for `kafka.group`"),
            (
                "HALLEY__KAFKA_DEAD_LETTER_TOPIC",
                "HALLEY__KAFKA__DEAD_LETTER_TOPIC for `kafka.dead_letter_topic`",
            ),
            ("halley_routing_cache_max_age", "HALLEY__ROUTING__CACHE__MAX_AGE for `routing.cache.max_age`"),
            ("HALLEY_ADMIN_TOKEN_FILE", "HALLEY__ADMIN__TOKEN_FILE for `admin.token_file`"),
            ("HALLEY_LOG_LEVEL", "HALLEY__LOG__LEVEL for `log.level`"),
        ] {
            assert_eq!(right_spelling(variable), Some(format!("write {right}")), "{variable}");
        }
    }

    #[test]
    fn foreign_variables_are_ignored() {
        let others = [
            "HALLEY",
            "HALLEY_CONFIG",
            "HALLEY_ADMIN_TOKEN",
            "HALLEY_TEST_KAFKA",
            "HALLEY_SOAK_MINUTES",
            "HALLEY_CACHE",
            "HALLEY_SERVICE_HOST",
            "HALLEY_PORT_9093_TCP_ADDR",
            "HALLEY_KAFKA_SERVICE_PORT",
            "HALLEY_KAFKA_PROPERTIES",
            "HALLEY_PLUGIN_NAME",
            "HALLEYS_KAFKA_GROUP",
            "HALLEY_A_B_C_D_E_F_G_H_I_J_K_L_M_N_O_P_Q_R_S_T_U_V_W_X_Y_Z_A_B_C_D_E_F_G_H",
        ];
        for variable in others {
            assert_eq!(misspelled_variable(variable), None, "{variable}");
        }
    }
}
