//! `halley plugin settings`, and how the commands show settings.

use std::path::Path;

use serde_json::Value;

use crate::cli::plugin::client::GatewayArgs;
use crate::cli::{EXIT_SUCCESS, print, print_json, print_lines, usage};
use crate::settings::{SettingsField, SettingsSchema};

/// The annotation of a published plugin with the schema of its settings.
pub(super) const ANNOTATION: &str = "halley.settings";
/// Longer schemas are not published as annotations, in bytes: registries and tools read all of them.
const LONGEST_ANNOTATION: usize = 8 * 1024;
/// Longer keys, types and defaults do not widen their columns, in characters.
const WIDEST: usize = 28;

/// Arguments of `halley plugin settings`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The plugin.
    name: String,
    /// Prints the gateway's JSON response, with the JSON Schema.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    if Path::new(&args.name).is_file() {
        return usage(&format!(
            "`{0}` is a file; `halley plugin inspect {0}` shows the settings of a file",
            args.name
        ));
    }
    let answer = args.gateway.get(&["plugins", &args.name, "settings"])?;
    if args.json {
        print_json(&format!("{answer:#}"));
        return Ok(EXIT_SUCCESS);
    }
    match &answer["schema"] {
        Value::Null => print("the plugin does not describe its settings"),
        schema => print_lines(table(&SettingsSchema::parse(&schema.to_string())?)),
    }
    Ok(EXIT_SUCCESS)
}

/// The content of [`ANNOTATION`], if it is short enough.
pub(super) fn annotation(schema: &SettingsSchema) -> Option<String> {
    Some(schema.document().to_string()).filter(|text| text.len() <= LONGEST_ANNOTATION)
}

/// A table of the settings: key, type, default, description.
pub(super) fn table(schema: &SettingsSchema) -> Vec<String> {
    let head = ["key", "type", "default", "description"].map(str::to_owned);
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(schema.fields().into_iter().map(row)).collect();
    let width = |column: usize| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.filter(|length| *length <= WIDEST).max().unwrap_or_default()
    };
    let [keys, kinds, defaults] = [width(0), width(1), width(2)];
    let line = |[key, kind, default, description]: &[String; 4]| {
        let line = format!("  {key:keys$}  {kind:kinds$}  {default:defaults$}  {description}");
        line.trim_end().to_owned()
    };
    match rows.len() {
        1 => vec!["  none".to_owned()],
        _ => rows.iter().map(line).collect(),
    }
}

fn row(field: SettingsField) -> [String; 4] {
    let SettingsField { key, kind, required, default, description } = field;
    let default = match (required, default) {
        (true, _) => "required".to_owned(),
        (false, Some(default)) => default.to_string(),
        (false, None) => "-".to_owned(),
    };
    [key, kind, default, description]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(properties: Value) -> SettingsSchema {
        let document = serde_json::json!({ "properties": properties, "required": ["words"] });
        SettingsSchema::parse(&document.to_string()).unwrap()
    }

    #[test]
    fn settings_are_a_table_and_short_ones_an_annotation() {
        let described = schema(serde_json::json!({
            "words": { "type": "array", "items": { "type": "string" }, "description": "What to look for." },
            "mask": { "type": "string", "default": "*" },
        }));
        assert_eq!(
            table(&described),
            [
                "  key    type             default   description",
                "  mask   string           \"*\"",
                "  words  array of string  required  What to look for.",
            ]
        );
        assert_eq!(annotation(&described), Some(described.document().to_string()));
        let long = schema(serde_json::json!({ "words": { "description": "long".repeat(3_000) } }));
        assert_eq!(annotation(&long), None);
        assert_eq!(table(&SettingsSchema::parse("{}").unwrap()), ["  none"]);
    }
}
