//! Arbitrary signatures of arbitrary files.

use arbitrary::{Result, Unstructured};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
use ed25519_dalek::{Signer as _, SigningKey};

use super::{PluginTrust, signature_as_text, statement};

const NAMES: [&str; 3] = ["p", "moderation", "p\nversion: 9"];
/// The keys that sign: the trusted one and another one.
const SEEDS: [u8; 2] = [1, 2];

/// The signed statement.
struct Made {
    seed: u8,
    /// The name and the number; `None` if the file alone is signed.
    statement: Option<(&'static str, u64)>,
    file: Vec<u8>,
}

/// Checks that no version is accepted that the trusted key did not sign for this plugin.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let made = Made {
        seed: *input.choose(&SEEDS)?,
        statement: if input.ratio(3, 4)? { Some((*input.choose(&NAMES)?, input.arbitrary()?)) } else { None },
        file: input.arbitrary()?,
    };
    let written = written(&made);
    let signature = match input.int_in_range(0..=4u8)? {
        0 => input.arbitrary()?,
        1 => signature_as_text(&written).map_or(written, String::into_bytes),
        2 => altered(input, written)?,
        _ => written,
    };
    let name = *input.choose(&NAMES)?;
    let file = if input.ratio(3, 4)? { made.file.clone() } else { altered(input, made.file.clone())? };
    let bare = input.arbitrary()?;
    let trust = PluginTrust::new(vec![pem(SEEDS[0]).into()]).with_bare_signatures(bare);
    if let Ok(text) = signature_as_text(&signature) {
        let again = signature_as_text(text.as_bytes());
        assert_eq!(again.as_ref(), Ok(&text), "what is sent is read as the same");
    }
    let Ok(number) = trust.check(name, &file, Some(&signature), None) else { return Ok(()) };
    assert_eq!((made.seed, &made.file), (SEEDS[0], &file), "the trusted key did not sign this file");
    match made.statement {
        Some((signed, version)) => assert_eq!((signed, Some(version)), (name, number)),
        None => assert!(bare && number.is_none(), "the signature does not name the plugin"),
    }
    Ok(())
}

/// The signature as signing tools write it.
fn written(made: &Made) -> Vec<u8> {
    let key = SigningKey::from_bytes(&[made.seed; 32]);
    let Some((name, version)) = made.statement else { return key.sign(&made.file).to_bytes().into() };
    let key = key.to_pkcs8_pem(LineEnding::LF).expect("a key");
    statement::sign(&key, name, version, &made.file).expect("signed").into_bytes()
}

fn pem(seed: u8) -> String {
    SigningKey::from_bytes(&[seed; 32]).verifying_key().to_public_key_pem(LineEnding::LF).expect("a key")
}

/// The bytes with a piece changed, inserted or removed.
fn altered(input: &mut Unstructured<'_>, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let at = input.int_in_range(0..=bytes.len())?;
    let to = at + input.int_in_range(0..=(bytes.len() - at).min(8))?;
    let piece = if input.arbitrary()? { input.arbitrary::<&[u8]>()? } else { &[] };
    bytes.splice(at..to, piece.iter().copied());
    Ok(bytes)
}
