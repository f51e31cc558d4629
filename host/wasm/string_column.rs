//! Many texts, or many bodies, as one, and where each ends: what crosses the border to a plugin at once.

/// Texts, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) joined: String,
    /// The byte at which each ends and the next one begins.
    pub(crate) ends: Vec<u32>,
}

impl Texts {
    /// Ids are rarely longer than this; longer ones make it grow.
    const USUAL: usize = 24;

    pub(crate) fn with_capacity(texts: usize) -> Self {
        Self { joined: String::with_capacity(texts * Self::USUAL), ends: Vec::with_capacity(texts) }
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        // What exceeds this fits into no plugin's memory: the call fails before it is read.
        self.ends.push(self.joined.len() as u32);
    }
}

/// Bytes that need not be text, one after the other.
#[derive(Debug)]
pub(crate) struct Blobs {
    pub(crate) joined: Vec<u8>,
    pub(crate) ends: Vec<u32>,
}

impl Blobs {
    /// For so many, of so many bytes together.
    pub(crate) fn with_capacity(blobs: usize, bytes: usize) -> Self {
        Self { joined: Vec::with_capacity(bytes), ends: Vec::with_capacity(blobs) }
    }

    pub(crate) fn push(&mut self, blob: &[u8]) {
        self.joined.extend_from_slice(blob);
        self.ends.push(self.joined.len() as u32);
    }
}
