//! Which versions of plugins may decide: those whose file has the pinned hash, and, once keys are
//! configured, only those that one of the keys has signed.
//!
//! Signatures are detached, ed25519 over the file as it is: what `openssl pkeyutl -sign -rawin`
//! writes. Keys are read again for every check, so that they can be changed while the gateway
//! runs. Knows nothing of where files come from.

mod keys;
mod signature;

use std::path::PathBuf;

use crate::policy::guest::module;

pub(super) use signature::beside;
pub use signature::{as_text as signature_as_text, read as read_signature};

/// The keys that are trusted; without any, signatures are not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Files, or PEM texts themselves.
    keys: Vec<String>,
}

impl Trust {
    /// Trust in these keys: files with public keys in PEM, or such a text itself.
    pub fn new(keys: Vec<String>) -> Self {
        Self { keys }
    }

    /// Whether signatures are asked for.
    pub fn asks_for_signatures(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether a key is given as a PEM text, not as a file's name.
    pub(super) fn is_text(key: &str) -> bool {
        keys::is_text(key)
    }

    /// The files with keys.
    pub fn key_files(&self) -> Vec<PathBuf> {
        self.keys.iter().filter(|key| !keys::is_text(key)).map(PathBuf::from).collect()
    }

    /// What tells whether the files with keys have changed.
    pub(super) fn fingerprint(&self) -> String {
        let read = |file: PathBuf| crate::files::read(&file, keys::MAX_SIZE).unwrap_or_default();
        self.key_files().into_iter().map(|file| format!(" {}", module::hash(&read(file)))).collect()
    }

    /// Whether a version of a plugin may decide.
    ///
    /// # Errors
    /// Why not, and what to do: the second half of a sentence that begins with the plugin.
    pub fn check(
        &self,
        name: &str,
        bytes: &[u8],
        signature: Option<&[u8]>,
        pin: Option<&str>,
    ) -> Result<(), String> {
        if let Some(pin) = pin {
            check_pin(name, bytes, pin)?;
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        let keys = keys::read_all(&self.keys)?;
        let Some(signature) = signature else {
            return Err(format!(
                "is not signed, and `[policies] trusted_keys` lets only signed plugins decide; {SIGN_IT}"
            ));
        };
        let signature = signature::parse(signature).map_err(|why| format!("has a signature that {why}"))?;
        // Strict: no key and no signature that others could take for another's.
        if keys.iter().any(|key| key.verify_strict(bytes, &signature).is_ok()) {
            return Ok(());
        }
        Err(format!(
            "is signed by none of the {} keys of `[policies] trusted_keys`, or was changed after it was signed (sha256 {}); {SIGN_IT}",
            keys.len(),
            module::hash(bytes)
        ))
    }
}

/// What makes a signature.
const SIGN_IT: &str = "sign it: `openssl pkeyutl -sign -inkey KEY.pem -rawin -in PLUGIN.wasm -out PLUGIN.wasm.sig` (a key pair: `openssl genpkey -algorithm ed25519 -out KEY.pem`, then `openssl pkey -in KEY.pem -pubout -out keys/ops.pem`)";

fn check_pin(name: &str, bytes: &[u8], pin: &str) -> Result<(), String> {
    let hash = module::hash(bytes);
    if hash.eq_ignore_ascii_case(pin) {
        return Ok(());
    }
    Err(format!(
        "has the sha256 {hash}, and [[plugin]] `{name}` is pinned to {pin}; bring that version, or change `sha256` in the configuration if this one is right"
    ))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ed25519_dalek::pkcs8::EncodePublicKey as _;
    use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    const BYTES: &[u8] = b"\0asm and so on";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn pem(seed: u8) -> String {
        key(seed).verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    fn signed(seed: u8, bytes: &[u8]) -> Vec<u8> {
        key(seed).sign(bytes).to_bytes().to_vec()
    }

    #[test]
    fn a_pin_holds_with_and_without_keys() {
        let (open, keyed) = (Trust::default(), Trust::new(vec![pem(1)]));
        let (hash, other) = (module::hash(BYTES), "0".repeat(64));
        let signature = signed(1, BYTES);
        assert_eq!(open.check("p", BYTES, None, None), Ok(()));
        assert_eq!(open.check("p", BYTES, None, Some(&hash.to_uppercase())), Ok(()));
        for trust in [open, keyed] {
            let why = trust.check("p", BYTES, Some(&signature), Some(&other)).unwrap_err();
            assert!(why.contains(&hash) && why.contains(&other) && why.contains("change `sha256`"), "{why}");
        }
    }

    #[test]
    fn only_what_a_trusted_key_signed_may_decide() {
        let trust = Trust::new(vec![pem(1), pem(2) + &pem(3)]);
        let check = |signature: Option<&[u8]>| trust.check("p", BYTES, signature, None);
        for seed in [1, 2, 3] {
            assert_eq!(check(Some(&signed(seed, BYTES))), Ok(()), "key {seed}");
        }
        let text = base64::engine::general_purpose::STANDARD.encode(signed(2, BYTES));
        assert_eq!(check(Some(format!("{text}\n").as_bytes())), Ok(()));
        assert!(check(None).unwrap_err().contains("openssl pkeyutl -sign"));
        for wrong in [signed(4, BYTES), signed(1, b"something else")] {
            assert!(check(Some(&wrong)).unwrap_err().contains("none of the 3 keys"));
        }
        assert!(check(Some(b"nonsense")).unwrap_err().contains("64 bytes"));
    }

    #[test]
    fn keys_that_cannot_be_used_refuse_everything() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ops.pem");
        let trust = Trust::new(vec![file.display().to_string()]);
        let check = || trust.check("p", BYTES, Some(&signed(1, BYTES)), None);
        assert!(check().unwrap_err().contains("cannot be read"));
        for (content, why) in [
            ("", "no public key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no ed25519 public key"),
        ] {
            std::fs::write(&file, content).unwrap();
            let error = check().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        std::fs::write(&file, pem(1)).unwrap();
        assert_eq!(check(), Ok(()));
        std::fs::write(&file, pem(2)).unwrap();
        assert!(check().is_err(), "the key was changed");
        assert_eq!(trust.key_files(), [file]);
    }
}
