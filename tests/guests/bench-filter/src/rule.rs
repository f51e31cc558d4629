//! The rules of the benchmarked filters. The benchmark compiles this file natively as well, for
//! comparison with WebAssembly.

/// Whether most of a body is written in capital letters: a counting loop, which compilers optimize well.
pub(crate) fn shouts(body: &[u8]) -> bool {
    let capitals = body.iter().filter(|byte| byte.is_ascii_uppercase()).count();
    capitals * 2 > body.len()
}

/// Whether a body contains one of these words, in lower or upper case: a branch at every byte.
pub(crate) fn holds_a_word<W: AsRef<[u8]>>(body: &[u8], words: &[W]) -> bool {
    let mut begin = 0;
    for at in 0..=body.len() {
        if body.get(at).is_some_and(u8::is_ascii_alphanumeric) {
            continue;
        }
        let word = &body[begin..at];
        if words.iter().any(|wanted| wanted.as_ref().eq_ignore_ascii_case(word)) {
            return true;
        }
        begin = at + 1;
    }
    false
}
