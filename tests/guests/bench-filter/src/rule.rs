//! What the measured filter does with a body. The benchmark compiles this very file natively,
//! too: that is what the WebAssembly is compared with.

/// Whether one of these words stands in a body, in small or capital letters. Looks at every
/// byte of it.
pub(crate) fn holds_a_word<W: AsRef<[u8]>>(body: &[u8], words: &[W]) -> bool {
    let mut found = body.split(|byte| !byte.is_ascii_alphanumeric());
    found.any(|word| words.iter().any(|wanted| wanted.as_ref().eq_ignore_ascii_case(word)))
}
