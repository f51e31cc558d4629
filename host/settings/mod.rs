//! The settings of a plugin: the JSON Schema that it exports for its `config` table. Pure.
//!
//! A schema is as untrusted as the plugin that it comes from, and a configuration may be large. So:
//!
//! - `bounds` limits what a schema may contain and refer to (nothing outside of it), and how much work it
//!   may cause with one configuration, before anything is validated.
//! - `violation` turns what a configuration violates into sentences with the path of each key.
//! - `field` lists the settings for people.
//!
//! Does not know plugins, or where a schema and a configuration come from.

mod bounds;
mod field;
mod violation;

use std::panic::{AssertUnwindSafe, catch_unwind};

use boon::{Compiler, Draft, SchemaIndex, Schemas, UrlLoader};
use serde_json::{Map, Value};

pub use bounds::SchemaError;
pub use field::SettingsField;
pub use violation::{SettingViolation, SettingsError};

/// Under which the schema is compiled. Never loaded.
const LOCATION: &str = "settings:schema";
/// Keywords of a whole document, which `bounds` has checked: no schema gets another name or language.
const OF_DOCUMENTS: [&str; 2] = ["$id", "$schema"];

/// The schema of a plugin's settings, which [`SettingsSchema::check`] can apply. In JSON, it is the schema
/// as the plugin exports it.
#[derive(serde::Serialize, derive_more::Debug)]
#[serde(transparent)]
#[debug("SettingsSchema({document:?})")]
pub struct SettingsSchema {
    document: Value,
    #[serde(skip)]
    compiled: Schemas,
    #[serde(skip)]
    root: SchemaIndex,
}

impl SettingsSchema {
    /// Reads a schema: JSON Schema, draft 2020-12, in at most 64 KiB.
    ///
    /// # Errors
    /// Why it is not accepted: the second half of a sentence that begins with the schema.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        bounds::check_size(text)?;
        let document: Value = serde_json::from_str(text).map_err(|e| SchemaError::NotJson(e.to_string()))?;
        bounds::check(&document)?;
        let bare = match &document {
            Value::Object(keywords) => Value::Object(without(keywords, &OF_DOCUMENTS)),
            other => other.clone(),
        };
        // What a library makes of a hostile schema must not end the process.
        let compiled = catch_unwind(AssertUnwindSafe(|| compile(bare)));
        let (compiled, root) =
            compiled.unwrap_or_else(|_| Err(SchemaError::Invalid("it cannot be compiled".to_owned())))?;
        Ok(Self { document, compiled, root })
    }

    /// Checks a plugin's `config` table.
    ///
    /// # Errors
    /// Everything that the table violates.
    pub fn check(&self, config: &Value) -> Result<(), SettingsError> {
        bounds::check_work(&self.document, config).map_err(SettingsError::TooMuchWork)?;
        let violated = self.compiled.validate(config, self.root);
        violated.map_err(|error| violation::of(&error, &self.document, config))
    }

    /// The settings, for people: tables of the configuration are listed with their keys.
    pub fn fields(&self) -> Vec<SettingsField> {
        field::list(&self.document)
    }

    /// The schema as the plugin exports it.
    pub fn document(&self) -> &Value {
        &self.document
    }
}

fn without(keywords: &Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let kept = keywords.iter().filter(|(name, _)| !names.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn compile(document: Value) -> Result<(Schemas, SchemaIndex), SchemaError> {
    let invalid = |error: boon::CompileError| SchemaError::Invalid(violation::of_schema(&error));
    let mut compiler = Compiler::new();
    compiler.set_default_draft(Draft::V2020_12);
    compiler.use_loader(Box::new(NoLoader));
    let mut schemas = Schemas::new();
    compiler.add_resource(LOCATION, document).map_err(invalid)?;
    let root = compiler.compile(LOCATION, &mut schemas).map_err(invalid)?;
    Ok((schemas, root))
}

/// Schemas contain everything that they refer to.
struct NoLoader;

impl UrlLoader for NoLoader {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("{url} is outside of the schema").into())
    }
}

#[cfg(test)]
mod tests;
