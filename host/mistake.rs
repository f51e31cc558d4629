//! A mistake in the configuration, as the module finds it that owns the keys. `config` adds its place.

use std::fmt::Display;

/// Values that are wrong, or probably not intended.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{text}")]
pub struct Mistake {
    /// The keys that it is about, section by section, and those that it was derived from. The first one
    /// gives its place.
    pub keys: Vec<Vec<String>>,
    /// What is wrong and, if not obvious, how to fix it: a sentence.
    pub text: String,
}

impl Mistake {
    /// About a key, such as `kafka.group`.
    pub fn about(key: &str, text: impl Display) -> Self {
        Self { keys: Vec::new(), text: text.to_string() }.and(key)
    }

    /// About another key, or derived from it: if that one is mistaken, this is not known.
    #[must_use]
    pub fn and(mut self, key: &str) -> Self {
        self.keys.push(key.split('.').map(str::to_owned).collect());
        self
    }

    /// About this element of the first key's value.
    #[must_use]
    pub fn at(mut self, element: impl Display) -> Self {
        self.keys[0].push(element.to_string());
        self
    }
}

/// A [`Mistake`] whose sentence begins with its key: `mistake!("kafka.group", "is empty; …")`.
macro_rules! mistake {
    ($key:literal, $($text:tt)+) => {{
        let (key, text) = (format!($key), format!($($text)+));
        let gap = if text.starts_with(':') { "" } else { " " };
        $crate::mistake::Mistake::about(&key, format_args!("`{key}`{gap}{text}"))
    }};
}

pub(crate) use mistake;
