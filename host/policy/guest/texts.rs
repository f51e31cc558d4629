//! Many texts or bodies as one, and where each ends: what crosses the border to a plugin at once.

/// Texts, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Texts {
    pub(in crate::policy) joined: String,
    /// The byte at which each ends and the next one begins.
    pub(in crate::policy) ends: Vec<u32>,
}

impl Texts {
    /// Ids are rarely longer than this; longer ones make it grow.
    const USUAL: usize = 24;

    pub(in crate::policy) fn with_capacity(texts: usize) -> Self {
        Self { joined: String::with_capacity(texts * Self::USUAL), ends: Vec::with_capacity(texts) }
    }

    pub(in crate::policy) fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        // What exceeds this fits into no plugin's memory: the call fails before it is read.
        self.ends.push(self.joined.len() as u32);
    }
}
