//! The environment: which variables are ours, and which only look like it.

use std::ffi::OsString;

use toml::{Table, Value};

use crate::config::Config;
use crate::config::mistake::Mistake;

/// The prefix of environment overrides: `HALLEY__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "HALLEY__";

/// What the variables of this program begin with, the overrides among them.
const OURS: &str = "HALLEY";

/// The variables that may be overrides, or were meant to be. `vars_os`, since `vars` panics where
/// any variable is not UTF-8; one of ours is read as far as it can be, and refused by the check of
/// its value.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    std::env::vars_os().map(text).filter(|(name, _)| name.to_uppercase().starts_with(OURS))
}

/// What is wrong with a variable that is no override, when it spells one except for its underscores
/// and its case: `HALLEY_KAFKA_GROUP`. What else begins like that may be anybody's: container
/// platforms name variables after services.
pub(super) fn misspelt(variable: &str) -> Option<Mistake> {
    let text = format!("is not read; {}", right_spelling(variable)?);
    Some(Mistake { place: format!("environment variable {variable}"), text })
}

/// How a variable is written that spells a key except for its underscores and its case.
pub(super) fn right_spelling(variable: &str) -> Option<String> {
    let upper = variable.to_uppercase();
    let words: Vec<&str> = upper.strip_prefix(OURS)?.split('_').filter(|word| !word.is_empty()).collect();
    // Each way to put words together to sections and a key; a gap between words is one or the other.
    let gaps = u32::try_from(words.len()).ok().filter(|words| (2..=MOST_WORDS).contains(words))? - 1;
    let path = (1..1_u32 << gaps).map(|cuts| path(&words, cuts)).find(|path| is_key(path))?;
    let right = format!("{ENVIRONMENT_PREFIX}{}", path.join("__").to_uppercase());
    Some(format!("write {right} for `{}`", path.join(".")))
}

/// No key has more words than that.
const MOST_WORDS: u32 = 8;

/// The words, with a new part wherever a bit of `cuts` is set.
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

/// Whether a key stands here: whatever is said against the value, it is not that there is none.
fn is_key(path: &[String]) -> bool {
    // Anything may stand in a table of names; whoever means one writes it with two underscores.
    let named = path.starts_with(&["kafka".into(), "properties".into()])
        || path.starts_with(&["comets".into(), "addresses".into()]);
    let is_none = |error: String| {
        unknown_field(&error).is_some() || error.contains("struct") || error.contains("sequence")
    };
    !named && !accepts(path, Value::String("x".to_owned())).is_err_and(is_none)
}

/// Reads a configuration with nothing but this value.
///
/// # Errors
/// What serde has against it.
pub(super) fn accepts(path: &[String], value: Value) -> Result<(), String> {
    let value = path.iter().rev().fold(value, |inner, key| match key.parse::<usize>() {
        // A list's element: alone it is as good as anywhere.
        Ok(_) => Value::Array(vec![inner]),
        Err(_) => Value::Table(Table::from_iter([(key.clone(), inner)])),
    });
    let read = value.try_into::<Config>();
    read.map(drop).map_err(|error| error.message().to_owned())
}

/// serde has no structured form of this: its message begins with "unknown field `name`".
pub(super) fn unknown_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    Some(rest.split('`').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_spells_a_key_is_told_how_to() {
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
    fn variables_of_others_are_let_be() {
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
            assert_eq!(misspelt(variable), None, "{variable}");
        }
    }
}
