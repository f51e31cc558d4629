//! Who named a comet's address.
//!
//! A producer of records, or a policy, must not be able to make the gateway connect to arbitrary
//! hosts: which addresses are dialled depends on who named them. Plain data; the rules are in
//! `comets`.

/// Who named the comet of a delivery, the most trusted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamedBy {
    /// An entry of the directory, or the gateway's own list of comets.
    #[default]
    Directory,
    /// A record, in `server`.
    Record,
    /// A plugin whose configuration lets it name comets as records do (`comets = "any"`).
    TrustedPlugin,
    /// Any other plugin: it may name comets that the gateway knows.
    Plugin,
}

impl NamedBy {
    /// Whether it may name only comets that the gateway already knows.
    pub fn is_limited_to_known(self) -> bool {
        self == Self::Plugin
    }

    /// The source, for use in a sentence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "the directory",
            Self::Record => "a record (`server`)",
            Self::TrustedPlugin | Self::Plugin => "a plugin",
        }
    }
}
