//! The settings that a schema describes, as rows for people.

use serde_json::{Map, Value};

use crate::telemetry::escape::cut;

/// How many settings are listed, and how deep.
const MAX_FIELDS: usize = 256;
const MAX_DEPTH: usize = 8;
/// The longest type and description, in characters.
const LONGEST_KIND: usize = 120;
const LONGEST_DESCRIPTION: usize = 500;

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SettingsField {
    /// The key: `cooldown.within` in a table, `rules[].action` in each table of an array, `regions.*` in a
    /// table with keys of any name.
    pub key: String,
    /// Such as `string`, `array of integer`, or `"drop" | "mask"`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether the key must be there.
    pub required: bool,
    /// What applies without the key, if the schema says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// On one line; empty if there is none.
    pub description: String,
}

/// The settings of this schema, in alphabetical order.
pub(super) fn list(document: &Value) -> Vec<SettingsField> {
    let mut fields = Fields { document, listed: Vec::new() };
    fields.table(document, "", 0);
    fields.listed
}

struct Fields<'d> {
    document: &'d Value,
    listed: Vec<SettingsField>,
}

impl<'d> Fields<'d> {
    /// The keys of a table.
    fn table(&mut self, schema: &'d Value, prefix: &str, depth: usize) {
        let schema = self.resolve(schema);
        if depth > MAX_DEPTH {
            return;
        }
        let required = schema.get("required").and_then(Value::as_array);
        let is_required =
            |name: &str| required.is_some_and(|names| names.iter().any(|required| required == name));
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.field(field, format!("{prefix}{name}"), is_required(name), depth);
        }
        if let Some(other @ Value::Object(_)) = schema.get("additionalProperties") {
            self.field(other, format!("{prefix}*"), false, depth);
        }
    }

    fn field(&mut self, schema: &'d Value, key: String, required: bool, depth: usize) {
        if self.listed.len() >= MAX_FIELDS {
            return;
        }
        let resolved = self.resolve(schema);
        // What is said where a type is used goes before what is said about the type.
        let said = |name: &str| schema.get(name).or_else(|| resolved.get(name));
        let description = said("description").or_else(|| said("title")).and_then(Value::as_str);
        let description = description.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        self.listed.push(SettingsField {
            key: key.clone(),
            kind: cut(&self.kind(resolved, 0), LONGEST_KIND).into_owned(),
            required,
            default: said("default").filter(|default| !default.is_null()).cloned(),
            description: cut(&description, LONGEST_DESCRIPTION).into_owned(),
        });
        self.table(resolved, &format!("{key}."), depth + 1);
        if let Some(items) = resolved.get("items") {
            self.table(items, &format!("{key}[]."), depth + 1);
        }
    }

    fn kind(&self, schema: &'d Value, depth: usize) -> String {
        let schema = self.resolve(schema);
        let Value::Object(keywords) = schema else { return "any".to_owned() };
        if depth > MAX_DEPTH {
            return "...".to_owned();
        }
        if let Some(values) = values(keywords) {
            return values;
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(forms) = keywords.get(name).and_then(Value::as_array) {
                let forms = forms.iter().map(|form| self.kind(form, depth + 1)).filter(|kind| kind != "null");
                let mut forms: Vec<String> = forms.take(16).collect();
                forms.dedup();
                return forms.join(" | ");
            }
        }
        let types = match keywords.get("type") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => return "any".to_owned(),
        };
        let named = types.into_iter().filter(|one| *one != "null").map(|one| match one {
            "array" => match keywords.get("items") {
                Some(items) => format!("array of {}", self.kind(items, depth + 1)),
                None => one.to_owned(),
            },
            "object" => "table".to_owned(),
            other => other.to_owned(),
        });
        named.take(8).collect::<Vec<_>>().join(" | ")
    }

    /// The schema that one refers to, if it does.
    fn resolve(&self, schema: &'d Value) -> &'d Value {
        let mut resolved = schema;
        for _ in 0..MAX_DEPTH {
            resolved = match single(resolved) {
                Some(one) => one,
                None => match resolved.get("$ref").and_then(Value::as_str) {
                    Some(reference) => {
                        let target = reference.strip_prefix('#').and_then(|at| self.document.pointer(at));
                        target.unwrap_or(&Value::Null)
                    }
                    None => return resolved,
                },
            };
        }
        &Value::Null
    }
}

/// The schema in an `allOf` of one, and the one next to `null` in an `anyOf`: an optional type.
fn single(schema: &Value) -> Option<&Value> {
    if let Some([only]) = schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
        return Some(only);
    }
    let is_null = |form: &Value| form.get("type").is_some_and(|one| one == "null");
    match schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice) {
        Some([one, other]) if is_null(other) => Some(one),
        Some([one, other]) if is_null(one) => Some(other),
        _ => None,
    }
}

/// The values that a schema lists.
fn values(keywords: &Map<String, Value>) -> Option<String> {
    if let Some(only) = keywords.get("const") {
        return Some(only.to_string());
    }
    let values = keywords.get("enum").and_then(Value::as_array)?;
    Some(values.iter().take(16).map(Value::to_string).collect::<Vec<_>>().join(" | "))
}
