//! Why a plugin's file cannot be had, or may not decide.

/// Each text has the reason and the remedy: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// A file, a signature, a file with keys or a stored version cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The registry cannot be reached, takes too long, or refuses: it may be down, or the credentials
    /// may be missing for now.
    #[error("{0}")]
    Registry(String),
    /// `path` is not a reference into a registry.
    #[error("{0}")]
    Reference(String),
    /// The registry returned something else than a plugin with the named digest.
    #[error("{0}")]
    Content(String),
    /// A key is not one.
    #[error("{0}")]
    Key(String),
    /// It is not signed, not the pinned version, or older than one that was active.
    #[error("{0}")]
    Untrusted(String),
}

impl ArtifactError {
    /// Whether another attempt may succeed although neither the configuration nor a file changes.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreadable(_) | Self::Registry(_) => true,
            Self::Reference(_) | Self::Content(_) | Self::Key(_) | Self::Untrusted(_) => false,
        }
    }

    /// The same kind with another text.
    pub(crate) fn map_text(self, text: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Unreadable(why) => Self::Unreadable(text(why)),
            Self::Registry(why) => Self::Registry(text(why)),
            Self::Reference(why) => Self::Reference(text(why)),
            Self::Content(why) => Self::Content(text(why)),
            Self::Key(why) => Self::Key(text(why)),
            Self::Untrusted(why) => Self::Untrusted(text(why)),
        }
    }
}
