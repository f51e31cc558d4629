//! The comets that a source lists.

use std::collections::BTreeMap;

use crate::message::Address;

/// The comets that a source lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::comets) struct CometListing {
    /// As `[comets] nodes`.
    pub(in crate::comets) nodes: Vec<String>,
    /// As `[comets] addresses`.
    pub(in crate::comets) addresses: BTreeMap<String, String>,
}

/// Why a source has no usable list. Shown to operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct SourceError(String);

impl SourceError {
    pub(super) fn new(why: impl ToString) -> Self {
        Self(why.to_string())
    }
}

impl CometListing {
    /// The list, if it has comets and every address is valid.
    pub(super) fn checked(self) -> Result<Self, SourceError> {
        if self.nodes.is_empty() && self.addresses.is_empty() {
            return Err(SourceError::new("it lists no comet"));
        }
        let wrong = |text: &String| Address::parse(text).err();
        match self.nodes.iter().chain(self.addresses.values()).find_map(wrong) {
            Some(error) => Err(SourceError::new(error)),
            None => Ok(self),
        }
    }
}
