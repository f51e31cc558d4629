//! The users that a redriven message is for, as encoded in a header. Pure.
//!
//! Names are separated by commas; `%`, commas and control characters in a name are percent-encoded.
//! The list is bounded, so that the record can be written: `%..` at its end marks a truncated list.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use percent_encoding::percent_decode_str;

/// The maximum size of a list in bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Marks the end of a truncated list. No name has this encoding.
const MORE: &str = "%..";

/// Users by name; connection ids if no user is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedriveUsers {
    /// The listed users.
    pub named: BTreeSet<String>,
    /// The list is truncated: any other absent user may belong to it.
    pub truncated: bool,
}

impl RedriveUsers {
    /// Parses a header's value. `None` if it is empty, or longer than a gateway writes.
    pub fn parse(list: &str) -> Option<Self> {
        if list.len() > MOST_BYTES + 1 + MORE.len() {
            return None;
        }
        let mut users = Self::default();
        for name in list.split(',').filter(|name| !name.is_empty()) {
            if name == MORE {
                users.truncated = true;
            } else {
                users.named.insert(percent_decode_str(name).decode_utf8_lossy().into_owned());
            }
        }
        (users.truncated || !users.named.is_empty()).then_some(users)
    }
}

/// The header's value for these names; `None` if there are none.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut list = String::new();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let before = list.len();
        if before > 0 {
            list.push(',');
        }
        encode(name, &mut list);
        if list.len() > MOST_BYTES {
            list.truncate(before);
            list.push_str(if before > 0 { "," } else { "" });
            list.push_str(MORE);
            break;
        }
    }
    (!list.is_empty()).then_some(list)
}

fn encode(name: &str, list: &mut String) {
    for char in name.chars() {
        if char == '%' || char == ',' || char.is_ascii_control() {
            // Writing to a string never fails.
            let _ = write!(list, "%{:02x}", u32::from(char));
        } else {
            list.push(char);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_truncated() {
        let names: Vec<_> = (0..10_000).map(|n| format!("user-{n}")).collect();
        let long = list(names.iter().map(String::as_str)).unwrap_or_default();
        let users = RedriveUsers::parse(&long).unwrap_or_default();
        assert!(
            users.truncated && users.named.len() > 1_000 && long.len() <= MOST_BYTES + 4,
            "{}",
            long.len()
        );
        let one = list([names.concat().as_str()]).unwrap_or_default();
        assert_eq!(
            RedriveUsers::parse(&one),
            Some(RedriveUsers { truncated: true, ..RedriveUsers::default() })
        );
        assert_eq!(RedriveUsers::parse(&"a,".repeat(MOST_BYTES)), None);
    }

    proptest! {
        #[test]
        fn names_of_any_characters_are_parsed_as_written(names in proptest::collection::btree_set("\\PC{1,9}|[%,.\n]{1,4}", 0..20)) {
            let written = list(names.iter().map(String::as_str));
            let read = RedriveUsers::parse(&written.unwrap_or_default());
            let expected = (!names.is_empty()).then_some(RedriveUsers { named: names, truncated: false });
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn parsing_any_header_does_not_panic(text in ".*") {
            let _ = RedriveUsers::parse(&text);
        }
    }
}
