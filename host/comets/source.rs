//! How a comet came to be known, and how messages reach it.

/// How a comet came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Source {
    /// It is in `[comets] nodes` or `[comets] addresses`.
    Configured,
    /// A name in `[comets] nodes` has this address.
    Dns,
    /// `[comets.discovery]` found it.
    Discovery,
    /// Entries of the directory named it.
    Directory,
    /// Only a record (`server`) or a policy named it: it gets the calls sent to it, and no
    /// BROADCASTs.
    Named,
    /// It was configured, in DNS or discovered, and no longer is: it gets no BROADCASTs.
    Retired,
}

impl Source {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Configured, Self::Dns, Self::Discovery, Self::Directory, Self::Named, Self::Retired];

    /// Whether it is known from more than a record or a plugin.
    pub(super) fn is_trusted(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery | Self::Directory)
    }

    /// Whether an operator lists the comet.
    pub(super) fn is_configured(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery)
    }
}

/// How messages reach a comet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ChannelMode {
    /// There is no channel, or the comet has not answered on it.
    Unknown,
    /// By unary calls.
    Unary,
    /// By stream.
    Stream,
    /// Not at all: `[comets] delivery` is `stream`, and the comet does not serve it.
    StreamNotServed,
}

impl ChannelMode {
    pub(super) const ALL: [Self; 4] = [Self::Unknown, Self::Unary, Self::Stream, Self::StreamNotServed];
}
