//! What a configuration violates, in sentences.

use std::fmt;

use boon::{CompileError, ErrorKind, InstanceLocation, InstanceToken, Type, ValidationError};
use serde_json::Value;

use crate::settings::bounds::TooMuchWork;
use crate::telemetry::escape::cut;

/// How many violations are listed.
const MAX_LISTED: usize = 32;
/// How many alternatives (values, keys) a sentence names.
const MAX_NAMED: usize = 16;
/// Longer values and keys are not quoted whole, in characters.
const LONGEST_VALUE: usize = 60;

/// Something in a configuration that violates a schema.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SettingViolation {
    /// The key, beginning with `config`; elements of lists have their number.
    #[serde(skip)]
    pub key: Vec<String>,
    /// The path of the key, such as `config.rules[1].action`.
    pub path: String,
    /// What was expected, and what is there.
    pub problem: String,
}

/// Why a configuration does not fit a schema: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// At least one; and how many more there are.
    Violated(Vec<SettingViolation>, usize),
    /// It was not checked.
    TooMuchWork(TooMuchWork),
}

impl std::error::Error for SettingsError {}

impl SettingsError {
    /// Each violation alone, with its key.
    pub fn each(&self) -> Vec<(Vec<String>, Self)> {
        let Self::Violated(violations, more) = self else {
            return vec![(vec![CONFIG.to_owned()], self.clone())];
        };
        let last = violations.len().saturating_sub(1);
        let alone = |(at, one): (usize, &SettingViolation)| {
            (one.key.clone(), Self::Violated(vec![one.clone()], if at == last { *more } else { 0 }))
        };
        violations.iter().enumerate().map(alone).collect()
    }
}

/// The table with the settings.
const CONFIG: &str = "config";

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(violations, more) => {
                f.write_str("has settings that its schema does not accept: ")?;
                for (at, violation) in violations.iter().enumerate() {
                    f.write_str(if at > 0 { "; " } else { "" })?;
                    violation.fmt(f)?;
                }
                if *more > 0 { write!(f, "; and {more} more") } else { Ok(()) }
            }
            Self::TooMuchWork(why) => write!(f, "has a settings schema that {why}"),
        }
    }
}

impl fmt::Display for SettingViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// Everything that `config` violates.
pub(super) fn of(error: &ValidationError<'_, '_>, document: &Value, config: &Value) -> SettingsError {
    let mut found = Violations { document, config, listed: Vec::new(), more: 0 };
    found.collect(error);
    if found.listed.is_empty() {
        found.add(SettingPath::default(), "not accepted".to_owned());
    }
    SettingsError::Violated(found.listed, found.more)
}

/// Why a schema cannot be compiled, on one line.
pub(super) fn of_schema(error: &CompileError) -> String {
    let text = match error {
        CompileError::ValidationError { src, .. } => src.to_string(),
        other => format!("{other:#}"),
    };
    let lines: Vec<&str> =
        text.lines().map(str::trim).skip_while(|line| line.starts_with("jsonschema")).collect();
    cut(&lines.join("; "), 500).into_owned()
}

struct Violations<'a> {
    document: &'a Value,
    config: &'a Value,
    listed: Vec<SettingViolation>,
    more: usize,
}

impl Violations<'_> {
    fn add(&mut self, SettingPath { text: path, key }: SettingPath, problem: String) {
        let violation = SettingViolation { key, path, problem };
        if self.listed.contains(&violation) {
            return;
        }
        if self.listed.len() < MAX_LISTED { self.listed.push(violation) } else { self.more += 1 }
    }

    fn collect(&mut self, error: &ValidationError<'_, '_>) {
        let path = path(&error.instance_location);
        match &error.kind {
            ErrorKind::AdditionalProperties { got } => {
                let known = known_keys(self.document, error.schema_url);
                for key in got {
                    self.add(path.clone().key(key), format!("unknown key{known}"));
                }
            }
            ErrorKind::Required { want } => {
                for key in want {
                    self.add(path.clone().key(key), "missing, but required".to_owned());
                }
            }
            ErrorKind::PropertyName { prop } => {
                let why = error.causes.first().map(|cause| format!(": {}", expectation(&cause.kind)));
                let why = why.unwrap_or_default();
                self.add(path, format!("does not accept the key `{}`{why}", cut(prop, LONGEST_VALUE)));
            }
            ErrorKind::AnyOf | ErrorKind::OneOf(None) => self.alternatives(path, &error.causes),
            kind if error.causes.is_empty() => {
                let problem = format!("{}{}", expectation(kind), self.found(&error.instance_location));
                self.add(path, problem);
            }
            _ => error.causes.iter().for_each(|cause| self.collect(cause)),
        }
    }

    /// None of several schemas fits. If they are values, they are named; if only one of them is about
    /// values of this type, its own reasons are.
    fn alternatives(&mut self, path: SettingPath, causes: &[ValidationError<'_, '_>]) {
        let leaves: Vec<_> = causes.iter().map(leaf).collect();
        let values: Option<Vec<&Value>> =
            leaves.iter().map(|leaf| values(&leaf.kind)).collect::<Option<Vec<_>>>().map(|all| all.concat());
        if let (Some(values), Some(first)) = (values, leaves.first()) {
            let found = self.found(&first.instance_location);
            return self.add(path, format!("expected {}{found}", one_of(&values)));
        }
        let is_of_other_type = |leaf: &&ValidationError<'_, '_>| {
            matches!(leaf.kind, ErrorKind::Type { .. }) && self::path(&leaf.instance_location) == path
        };
        let fitting: Vec<usize> = (0..causes.len()).filter(|at| !is_of_other_type(&leaves[*at])).collect();
        if let [only] = fitting[..] {
            return self.collect(&causes[only]);
        }
        let mut reasons: Vec<String> = leaves.iter().map(|leaf| expectation(&leaf.kind)).collect();
        reasons.dedup();
        reasons.truncate(MAX_NAMED);
        self.add(path, format!("fits none of {} forms: {}", causes.len(), reasons.join("; or ")));
    }

    /// The value at a place, if it is short.
    fn found(&self, location: &InstanceLocation<'_>) -> String {
        let value = location.tokens.iter().try_fold(self.config, |value, token| match token {
            InstanceToken::Prop(name) => value.get(name.as_ref()),
            InstanceToken::Item(at) => value.get(at),
        });
        match value {
            None | Some(Value::Array(_) | Value::Object(_)) => String::new(),
            Some(value) => {
                let text = value.to_string();
                if text.chars().count() > LONGEST_VALUE { String::new() } else { format!(", and is {text}") }
            }
        }
    }
}

/// The first error without causes.
fn leaf<'a, 's, 'v>(error: &'a ValidationError<'s, 'v>) -> &'a ValidationError<'s, 'v> {
    match (&error.causes[..], &error.kind) {
        ([first, ..], _) => leaf(first),
        ([], _) => error,
    }
}

/// The values that an error would accept.
fn values<'s>(kind: &ErrorKind<'s, '_>) -> Option<Vec<&'s Value>> {
    match kind {
        ErrorKind::Const { want } => Some(vec![want]),
        ErrorKind::Enum { want } => Some(want.iter().collect()),
        _ => None,
    }
}

fn one_of(values: &[&Value]) -> String {
    let shown = |value: &&Value| match value {
        Value::String(text) => format!("`{}`", cut(text, LONGEST_VALUE)),
        other => cut(&other.to_string(), LONGEST_VALUE).into_owned(),
    };
    let mut named: Vec<String> = values.iter().take(MAX_NAMED).map(shown).collect();
    if values.len() > MAX_NAMED {
        named.push(format!("{} more", values.len() - MAX_NAMED));
    }
    match &named[..] {
        [only] => only.clone(),
        _ => format!("one of {}", named.join(", ")),
    }
}

/// What was expected.
fn expectation(kind: &ErrorKind<'_, '_>) -> String {
    if let Some(values) = values(kind) {
        return format!("expected {}", one_of(&values));
    }
    match kind {
        ErrorKind::Type { want, .. } => {
            let names: Vec<&str> = want.iter().map(type_name).collect();
            format!("expected {}", names.join(" or "))
        }
        ErrorKind::FalseSchema => "not allowed".to_owned(),
        ErrorKind::Not => "has a value that is excluded".to_owned(),
        ErrorKind::OneOf(Some(_)) => "fits more than one of the forms of which one is expected".to_owned(),
        ErrorKind::Minimum { want, .. } => format!("must be at least {want}"),
        ErrorKind::Maximum { want, .. } => format!("must be at most {want}"),
        ErrorKind::ExclusiveMinimum { want, .. } => format!("must be more than {want}"),
        ErrorKind::ExclusiveMaximum { want, .. } => format!("must be less than {want}"),
        ErrorKind::MultipleOf { want, .. } => format!("must be a multiple of {want}"),
        ErrorKind::MinLength { want, .. } => format!("must have at least {want} characters"),
        ErrorKind::MaxLength { want, .. } => format!("must have at most {want} characters"),
        ErrorKind::MinItems { want, got } => format!("must have at least {want} elements, and has {got}"),
        ErrorKind::MaxItems { want, got } => format!("must have at most {want} elements, and has {got}"),
        ErrorKind::UniqueItems { got: [one, other] } => {
            format!("must not repeat elements; those at {one} and {other} are equal")
        }
        ErrorKind::MinProperties { want, got } => format!("must have at least {want} keys, and has {got}"),
        ErrorKind::MaxProperties { want, got } => format!("must have at most {want} keys, and has {got}"),
        ErrorKind::Pattern { want, .. } => format!("must match the pattern `{}`", cut(want, 200)),
        ErrorKind::DependentRequired { prop, missing } | ErrorKind::Dependency { prop, missing } => {
            format!(
                "has `{}`, which requires `{}`",
                cut(prop, LONGEST_VALUE),
                cut(&missing.join("`, `"), 200)
            )
        }
        other => cut(&other.to_string(), 200).into_owned(),
    }
}

/// In the words of TOML, which configurations are written in.
fn type_name(one: Type) -> &'static str {
    match one {
        Type::Null => "nothing",
        Type::Boolean => "true or false",
        Type::Number => "a number",
        Type::Integer => "a whole number",
        Type::String => "a string",
        Type::Array => "a list",
        Type::Object => "a table",
    }
}

/// The keys that the schema at this URL names, for a mistyped one.
fn known_keys(document: &Value, schema_url: &str) -> String {
    let pointer = schema_url.split_once('#').map_or("", |(_, pointer)| pointer);
    let named = document.pointer(pointer).and_then(|schema| schema.get("properties")?.as_object());
    let keys = named.into_iter().flat_map(|named| named.keys()).map(|key| cut(key, LONGEST_VALUE));
    let keys: Vec<_> = keys.take(MAX_NAMED).collect();
    if keys.is_empty() { String::new() } else { format!("; the keys are `{}`", keys.join("`, `")) }
}

fn path(location: &InstanceLocation<'_>) -> SettingPath {
    location.tokens.iter().fold(SettingPath::default(), |path, token| match token {
        InstanceToken::Prop(name) => path.key(name),
        InstanceToken::Item(at) => path.item(*at),
    })
}

/// The path of a key, for people and for programs.
#[derive(Clone, PartialEq, Eq)]
struct SettingPath {
    text: String,
    key: Vec<String>,
}

/// The whole table.
impl Default for SettingPath {
    fn default() -> Self {
        Self { text: CONFIG.to_owned(), key: vec![CONFIG.to_owned()] }
    }
}

impl SettingPath {
    fn key(mut self, name: &str) -> Self {
        self.text.push_str(&key_segment(name));
        self.key.push(name.to_owned());
        self
    }

    fn item(mut self, at: usize) -> Self {
        self.text.push_str(&format!("[{at}]"));
        self.key.push(at.to_string());
        self
    }
}

/// A key as TOML writes it after its table.
fn key_segment(name: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !name.is_empty() && name.len() <= LONGEST_VALUE && name.bytes().all(is_bare) {
        return format!(".{name}");
    }
    format!(".{}", Value::from(&*cut(name, LONGEST_VALUE)))
}
