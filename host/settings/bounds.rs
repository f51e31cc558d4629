//! Limits on a schema, and on the work that it causes with one configuration.
//!
//! Schemas that apply to the same value can multiply (`allOf` of two references, each to another `allOf`
//! of two references, ...), and a reference can lead back to where it is. A validator has no limit on
//! either, so the pairs of a schema and a value that it will look at are counted here first.

use std::collections::HashSet;

use regex::RegexBuilder;
use serde_json::{Map, Value};

/// The longest schema, in bytes.
const MAX_TEXT: usize = 64 * 1024;
/// The maximum number of schemas in a schema, and how deep they may be nested.
const MAX_SCHEMAS: usize = 4096;
const MAX_NESTING: usize = 24;
/// The maximum number of patterns, the length of one in bytes, and the memory of one when compiled.
const MAX_PATTERNS: usize = 64;
const MAX_PATTERN: usize = 512;
const PATTERN_MEMORY: usize = 256 * 1024;
/// How many steps one configuration may take: a schema that is applied to a value, or one element of its
/// lists that is compared. Also how deep they may be nested.
const MAX_STEPS: usize = 500_000;
const MAX_DEPTH: usize = 128;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Keywords whose value is a schema, a list of schemas, or a table of schemas.
const ONE: [&str; 11] = [
    "not",
    "if",
    "then",
    "else",
    "items",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
const TABLES: [&str; 6] =
    ["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"];
/// Keywords by which a schema refers to others in more ways than a place in the same document.
const REFUSED: [&str; 6] =
    ["$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "$vocabulary"];

/// Why a schema is not accepted: the second half of a sentence that begins with the schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// It is too long, in bytes.
    #[error("has {0} bytes; at most {MAX_TEXT} are accepted")]
    Size(usize),
    /// The parser's message.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// It has too many of these, or too large ones.
    #[error("has {0}")]
    Limit(String),
    /// It is written in another language.
    #[error("has the `$schema` {0}; write it in draft 2020-12 ({DRAFT})")]
    Draft(String),
    /// It uses a keyword for references that is not supported.
    #[error("uses `{0}`, which is not supported; refer to a place in the schema, such as `#/$defs/name`")]
    Keyword(String),
    /// It refers to something that is no schema in it.
    #[error("refers to `{0}`, which is not a schema inside of it; nothing else is loaded")]
    Reference(String),
    /// A pattern that is not accepted, and why.
    #[error("has the pattern `{0}`, which {1}")]
    Pattern(String, String),
    /// It is not a valid schema.
    #[error("is not valid: {0}")]
    Invalid(String),
    /// Applying it would not end in reasonable time.
    #[error("{0}")]
    TooMuchWork(TooMuchWork),
}

/// Why a schema cannot be applied to a value: the second half of a sentence that begins with the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuchWork {
    /// Too many steps.
    #[error(
        "takes more than {MAX_STEPS} steps to apply to the configuration; simplify what refers to itself"
    )]
    Steps,
    /// Too deep.
    #[error("refers to itself more than {MAX_DEPTH} levels deep")]
    Depth,
}

/// Checks the length of a schema, before it is parsed.
pub(super) fn check_size(text: &str) -> Result<(), SchemaError> {
    if text.len() > MAX_TEXT { Err(SchemaError::Size(text.len())) } else { Ok(()) }
}

/// Checks the parts of a schema that the validator would accept without a limit.
pub(super) fn check(document: &Value) -> Result<(), SchemaError> {
    if let Some(draft) = document.get("$schema")
        && draft.as_str().map(|text| text.trim_end_matches('#')) != Some(DRAFT)
    {
        return Err(SchemaError::Draft(short(&draft.to_string())));
    }
    let mut parts = Parts::default();
    parts.visit(document, String::new(), 0)?;
    let unknown = parts.references.iter().find(|target| !parts.places.contains(**target));
    if let Some(target) = unknown {
        return Err(SchemaError::Reference(format!("#{}", short(target))));
    }
    check_work(document, &Value::Object(Map::new())).map_err(SchemaError::TooMuchWork)
}

/// The parts of a document.
#[derive(Default)]
struct Parts<'d> {
    /// Where there are schemas, as JSON pointers.
    places: HashSet<String>,
    /// The targets of references, as JSON pointers.
    references: Vec<&'d str>,
    patterns: usize,
}

impl<'d> Parts<'d> {
    fn visit(&mut self, schema: &'d Value, place: String, nesting: usize) -> Result<(), SchemaError> {
        if nesting > MAX_NESTING {
            return Err(SchemaError::Limit(format!("schemas more than {MAX_NESTING} levels deep")));
        }
        if self.places.len() >= MAX_SCHEMAS {
            return Err(SchemaError::Limit(format!("more than {MAX_SCHEMAS} schemas")));
        }
        if let Value::Object(keywords) = schema {
            self.keywords(keywords, nesting)?;
            for (keyword, value) in keywords {
                self.schemas_of(keyword, value, &place, nesting + 1)?;
            }
        }
        self.places.insert(place);
        Ok(())
    }

    fn keywords(&mut self, keywords: &'d Map<String, Value>, nesting: usize) -> Result<(), SchemaError> {
        let only_whole = ["$id", "$schema"].into_iter().filter(|_| nesting > 0);
        if let Some(refused) = REFUSED.into_iter().chain(only_whole).find(|name| keywords.contains_key(*name))
        {
            return Err(SchemaError::Keyword(refused.to_owned()));
        }
        if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
            let target = reference.strip_prefix('#');
            self.references.push(target.ok_or_else(|| SchemaError::Reference(short(reference)))?);
        }
        let names = keywords.get("patternProperties").and_then(Value::as_object);
        let names = names.into_iter().flat_map(Map::keys).map(String::as_str);
        for pattern in keywords.get("pattern").and_then(Value::as_str).into_iter().chain(names) {
            self.patterns += 1;
            if self.patterns > MAX_PATTERNS {
                return Err(SchemaError::Limit(format!("more than {MAX_PATTERNS} patterns")));
            }
            check_pattern(pattern)?;
        }
        Ok(())
    }

    fn schemas_of(
        &mut self,
        keyword: &str,
        value: &'d Value,
        place: &str,
        nesting: usize,
    ) -> Result<(), SchemaError> {
        match value {
            Value::Array(items) if LISTS.contains(&keyword) => {
                for (at, item) in items.iter().enumerate() {
                    self.visit(item, format!("{place}/{keyword}/{at}"), nesting)?;
                }
            }
            Value::Object(table) if TABLES.contains(&keyword) => {
                for (name, item) in table {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    self.visit(item, format!("{place}/{keyword}/{name}"), nesting)?;
                }
            }
            value if ONE.contains(&keyword) => self.visit(value, format!("{place}/{keyword}"), nesting)?,
            _ => {}
        }
        Ok(())
    }
}

/// Patterns are matched in linear time, by the validator with the same engine; what that does not support is
/// refused.
fn check_pattern(pattern: &str) -> Result<(), SchemaError> {
    let refused = |why: String| SchemaError::Pattern(short(pattern), why);
    if pattern.len() > MAX_PATTERN {
        return Err(refused(format!("has {} bytes; at most {MAX_PATTERN} are accepted", pattern.len())));
    }
    match RegexBuilder::new(pattern).size_limit(PATTERN_MEMORY).build() {
        Err(regex::Error::CompiledTooBig(_)) => {
            Err(refused(format!("takes more than {PATTERN_MEMORY} bytes when compiled")))
        }
        // The validator would translate more of ECMAScript, and compile it without this limit.
        Err(error) => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            Err(refused(format!("is not supported: {reason}")))
        }
        Ok(_) => Ok(()),
    }
}

/// Checks that a schema can be applied to a value in bounded time and depth.
pub(super) fn check_work(document: &Value, config: &Value) -> Result<(), TooMuchWork> {
    Work { document, steps: 0 }.apply(document, config, 0)
}

/// The steps of a validator that stops at nothing.
struct Work<'d> {
    document: &'d Value,
    steps: usize,
}

impl<'d> Work<'d> {
    fn apply(&mut self, schema: &'d Value, value: &Value, depth: usize) -> Result<(), TooMuchWork> {
        let Value::Object(keywords) = schema else { return self.step(1) };
        if depth >= MAX_DEPTH {
            return Err(TooMuchWork::Depth);
        }
        let compared = ["enum", "required"].into_iter().filter_map(|name| keywords.get(name)?.as_array());
        self.step(1 + compared.map(Vec::len).sum::<usize>())?;
        self.same_value(keywords, value, depth + 1)?;
        match value {
            Value::Object(table) => self.table(keywords, table, depth + 1),
            Value::Array(items) => self.list(keywords, items, depth + 1),
            _ => Ok(()),
        }
    }

    fn step(&mut self, by: usize) -> Result<(), TooMuchWork> {
        self.steps = self.steps.saturating_add(by);
        if self.steps > MAX_STEPS { Err(TooMuchWork::Steps) } else { Ok(()) }
    }

    /// What applies to the value itself.
    fn same_value(
        &mut self,
        keywords: &'d Map<String, Value>,
        value: &Value,
        depth: usize,
    ) -> Result<(), TooMuchWork> {
        let target =
            keywords.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
        let target = target.and_then(|pointer| self.document.pointer(pointer));
        let one = ["not", "if", "then", "else"].into_iter().filter_map(|name| keywords.get(name));
        let lists = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|name| keywords.get(name)?.as_array());
        let tables = ["dependentSchemas", "dependencies"].into_iter();
        let tables = tables.filter_map(|name| keywords.get(name)?.as_object());
        let all = target.into_iter().chain(one).chain(lists.flatten()).chain(tables.flat_map(Map::values));
        for schema in all {
            self.apply(schema, value, depth)?;
        }
        Ok(())
    }

    /// What applies to the keys and values of a table.
    fn table(
        &mut self,
        keywords: &'d Map<String, Value>,
        table: &Map<String, Value>,
        depth: usize,
    ) -> Result<(), TooMuchWork> {
        let named = keywords.get("properties").and_then(Value::as_object);
        let patterns = keywords.get("patternProperties").and_then(Value::as_object);
        let others = ["additionalProperties", "unevaluatedProperties"];
        for (name, value) in table {
            if let Some(names) = keywords.get("propertyNames") {
                self.apply(names, &Value::Null, depth)?;
            }
            let named = named.and_then(|named| named.get(name)).into_iter();
            let patterns = patterns.into_iter().flat_map(Map::values);
            let others = others.into_iter().filter_map(|other| keywords.get(other));
            for schema in named.chain(patterns).chain(others) {
                self.apply(schema, value, depth)?;
            }
        }
        Ok(())
    }

    /// What applies to the items of a list.
    fn list(
        &mut self,
        keywords: &'d Map<String, Value>,
        items: &[Value],
        depth: usize,
    ) -> Result<(), TooMuchWork> {
        let first = keywords.get("prefixItems").and_then(Value::as_array);
        for (at, value) in items.iter().enumerate() {
            let all = ["items", "contains", "unevaluatedItems"].into_iter();
            let all = all.filter_map(|name| keywords.get(name));
            for schema in first.and_then(|first| first.get(at)).into_iter().chain(all) {
                self.apply(schema, value, depth)?;
            }
        }
        Ok(())
    }
}

fn short(text: &str) -> String {
    crate::telemetry::escape::cut(text, 80).into_owned()
}
