//! Arbitrary bytes through the check before compilation.

use arbitrary::{Result, Unstructured};

use super::bounds;

/// The maximum length of a reason, whatever the file contains.
const LONGEST_REASON: usize = 2_000;
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
/// A nesting depth that is certainly refused.
const TOO_DEEP: usize = 64;

/// Checks that any file is either within the bounds, or refused with a short reason.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let (file, depth) = match input.int_in_range(0..=2u8)? {
        0 => (input.bytes(input.len())?.to_vec(), 0),
        1 => (sections(input, MODULE)?, 0),
        _ => {
            let depth = input.int_in_range(0..=TOO_DEEP)?;
            let mut file = sections(input, COMPONENT)?;
            for _ in 0..depth {
                let mut outer = COMPONENT.to_vec();
                section(&mut outer, 4, &file);
                // Two instances of the inner component.
                section(&mut outer, 5, &[2, 0, 0, 0, 0, 0, 0]);
                file = outer;
            }
            (file, depth)
        }
    };
    match bounds::check(&file) {
        Ok(()) => assert!(depth < TOO_DEEP && file.len() as u64 <= bounds::SIZE),
        Err(why) => {
            let why = why.to_string();
            assert!(why.chars().count() <= LONGEST_REASON, "{} bytes", why.len());
        }
    }
    Ok(())
}

/// A file with some sections of arbitrary content.
fn sections(input: &mut Unstructured<'_>, begin: &[u8]) -> Result<Vec<u8>> {
    let mut file = begin.to_vec();
    for _ in 0..input.int_in_range(0..=6u8)? {
        let (id, content) = (input.int_in_range(0..=13u8)?, input.arbitrary::<&[u8]>()?);
        section(&mut file, id, content);
    }
    Ok(file)
}

fn section(file: &mut Vec<u8>, id: u8, content: &[u8]) {
    file.push(id);
    let mut left = content.len();
    // LEB128.
    loop {
        let (byte, rest) = ((left & 0x7f) as u8, left >> 7);
        file.push(if rest > 0 { byte | 0x80 } else { byte });
        left = rest;
        if left == 0 {
            break;
        }
    }
    file.extend_from_slice(content);
}
