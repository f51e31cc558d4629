//! serde's messages in the words of TOML: a list and a table instead of a sequence and a map.

/// What follows the key in a sentence about its value: ` is "x"; expected a number`. A message that is not
/// serde's own follows a colon.
pub(super) fn in_toml_words(message: &str) -> String {
    match message.rsplit_once("expected ") {
        Some(("", wanted)) => format!(": expected {}", expected(wanted)),
        Some((found, keys)) if found.starts_with("unknown field") => {
            let keys = keys.trim_start_matches("one of ");
            let meant = similar(found, keys).map(|key| format!("did you mean `{key}`? "));
            format!(": unknown key; {}the keys are {keys}", meant.unwrap_or_default())
        }
        Some((found, wanted)) => match value(found) {
            Some(found) => format!(" is {found}; expected {}", expected(wanted)),
            None => format!(": {message}"),
        },
        None => format!(": {message}"),
    }
}

/// The key that may be meant by an unknown one: both stand between backquotes.
fn similar<'k>(found: &str, keys: &'k str) -> Option<&'k str> {
    let unknown = found.split('`').nth(1)?;
    let likeness = |key: &&str| strsim::jaro_winkler(unknown, key);
    let nearest = keys.split('`').skip(1).step_by(2).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&nearest) > 0.8).then_some(nearest)
}

/// The value that was found, by the beginning of a message: "invalid type: integer `5`, ".
fn value(found: &str) -> Option<&str> {
    let found = found.trim_end_matches(", ");
    let kinds = ["invalid type: ", "invalid value: ", "unknown variant "];
    match kinds.iter().find_map(|kind| found.strip_prefix(kind))? {
        "map" => Some("a table"),
        "sequence" => Some("a list"),
        scalar => Some(scalar.find(['`', '"']).map_or(scalar, |at| &scalar[at..])),
    }
}

/// What was expected.
fn expected(wanted: &str) -> &str {
    match wanted {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 to 9223372036854775807",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a string",
        "a duration" => "a duration, such as \"50ms\" or \"2h\"",
        "an integer or string" | "parsable string" | "integer overflow" => "a size, such as \"64MiB\"",
        _ if wanted.starts_with("struct ") => "a table",
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_toml_s_types() {
        for (message, words) in [
            (
                "invalid type: string \"many\", expected u32",
                " is \"many\"; expected a whole number from 0 to 4294967295",
            ),
            ("invalid value: integer `-1`, expected u8", " is `-1`; expected a whole number from 0 to 255"),
            ("invalid type: floating point `1.5`, expected i64", " is `1.5`; expected a whole number"),
            ("invalid type: boolean `true`, expected a sequence", " is `true`; expected a list"),
            ("invalid type: sequence, expected struct Config", " is a list; expected a table"),
            ("invalid type: map, expected a boolean", " is a table; expected true or false"),
            ("unknown variant `x`, expected one of `a`, `b`", " is `x`; expected one of `a`, `b`"),
            ("unknown field `x`, expected one of `a`, `b`", ": unknown key; the keys are `a`, `b`"),
            (
                "unknown field `brokerz`, expected one of `group`, `brokers`",
                ": unknown key; did you mean `brokers`? the keys are `group`, `brokers`",
            ),
            ("unknown field `x`, expected `a` or `b`", ": unknown key; the keys are `a` or `b`"),
            ("expected a duration", ": expected a duration, such as \"50ms\" or \"2h\""),
            ("`x` is not a share", ": `x` is not a share"),
        ] {
            assert_eq!(in_toml_words(message), words, "{message}");
        }
    }
}
