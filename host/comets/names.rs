//! Server names, as `[comets] addresses` and discovery map them.
//!
//! Producers use names in `server`, comets may register in the directory by name, and policies may
//! repeat these. One table maps all of them.
//!
//! Pure.

use std::collections::HashMap;

use crate::message::CometAddr;

/// Addresses by server name. A name that is itself an address is matched in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    names: HashMap<CometAddr, CometAddr>,
    /// All comets speak TLS, so that `https://` distinguishes nothing.
    all_tls: bool,
}

impl ServerNames {
    /// The table of these entries. For duplicate names, the first entry counts.
    pub fn new<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut names = HashMap::new();
        for (name, address) in entries {
            names.entry(CometAddr::from(name)).or_insert_with(|| CometAddr::from(address));
        }
        Self { names, all_tls: false }
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The address of a name; `None` if the name is unknown.
    pub fn get(&self, name: &CometAddr) -> Option<&CometAddr> {
        self.names.get(name)
    }

    /// The address of a name, or the name itself if it is unknown.
    pub fn address_of(&self, name: CometAddr) -> CometAddr {
        self.spelled(self.names.get(&name).cloned().unwrap_or(name))
    }

    /// The same names where all comets speak TLS: a comet with `https://` is the one without.
    #[must_use]
    pub fn with_tls(self, all_tls: bool) -> Self {
        Self { all_tls, ..self }
    }

    /// The address as this installation compares it.
    pub(super) fn spelled(&self, address: CometAddr) -> CometAddr {
        if self.all_tls { address.without_https() } else { address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_every_spelling_of_an_address_are_mapped_once() {
        let entries =
            [("comet-1", "http://A:1"), ("comet-1", "b:1"), ("Inner.:01", "outer:1"), ("a:1", "c:1")];
        let names = ServerNames::new(entries);
        let of = |name: &str| names.address_of(name.into()).to_string();
        assert_eq!(of("comet-1"), "a:1", "the first entry, and no further");
        assert_eq!((of("inner:1"), of("http://INNER:1")), ("outer:1".into(), "outer:1".into()));
        assert_eq!((of("comet-2"), of("D:1")), ("comet-2".into(), "d:1".into()));
        assert_eq!(of("https://d:1"), "https://d:1", "another way to speak");
        let names = names.with_tls(true);
        assert_eq!(names.address_of("HTTPS://D:1".into()).to_string(), "d:1", "all speak TLS");
    }
}
