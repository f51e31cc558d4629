//! Many texts or bodies as one, with the position where each ends: they cross the boundary to a
//! plugin at once.

/// Concatenated texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StringColumn {
    pub(crate) joined: String,
    /// Where each text ends and the next one begins, in bytes.
    pub(crate) ends: Vec<u32>,
}

impl StringColumn {
    /// The usual length of an id; longer ones reallocate.
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

/// Concatenated byte strings.
#[derive(Debug)]
pub(crate) struct BytesColumn {
    pub(crate) joined: Vec<u8>,
    pub(crate) ends: Vec<u32>,
}

impl BytesColumn {
    /// For this many byte strings with this total length.
    pub(crate) fn with_capacity(blobs: usize, bytes: usize) -> Self {
        Self { joined: Vec::with_capacity(bytes), ends: Vec::with_capacity(blobs) }
    }

    pub(crate) fn push(&mut self, blob: &[u8]) {
        self.joined.extend_from_slice(blob);
        self.ends.push(self.joined.len() as u32);
    }
}
