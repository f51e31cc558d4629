//! Which versions of plugins may decide: those whose file has the pinned hash, and, once keys are
//! configured, only those that one of the keys has signed.
//!
//! Signatures are detached, ed25519 over a statement: the plugin's name, the version's number and the
//! file's hash, so that neither another plugin nor an older version can be substituted. A signature
//! over the file alone binds none of that; it is accepted only where that is configured. Keys are
//! read again for every check, so that they can be rotated while the gateway runs. It does not know
//! where files come from.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keys;
mod signature;
mod statement;

use std::path::PathBuf;

use crate::artifact::error::ArtifactError;
use crate::digest::Digest;

pub use keys::TrustedKey;
pub use signature::{as_text as signature_as_text, read as read_signature, signature_path as signature_file};
pub(crate) use statement::Statement;
pub use statement::sign;

use signature::ParsedSignature;

/// The trusted keys; without any, signatures are not required.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginTrust {
    keys: Vec<TrustedKey>,
    /// Whether signatures over the file alone are accepted.
    bare: bool,
    /// What names the keys, if not the configuration.
    named_by: Option<&'static str>,
}

/// What a signature states; `None` for a signature over the file alone, which states nothing.
///
/// # Errors
/// When it is not a signature.
pub(crate) fn signed_version(signature: &[u8]) -> Result<Option<Statement>, ArtifactError> {
    Ok(match signature::parse(signature)? {
        ParsedSignature::Statement(statement, _) => Some(statement),
        ParsedSignature::Bare(_) => None,
    })
}

impl PluginTrust {
    /// Trusts these keys.
    pub fn new(keys: Vec<TrustedKey>) -> Self {
        Self { keys, bare: false, named_by: None }
    }

    /// Whether to accept signatures over the file alone.
    pub fn with_bare_signatures(self, bare: bool) -> Self {
        Self { bare, ..self }
    }

    /// With the option that names the keys, for errors of commands.
    pub(crate) fn named_by(self, option: &'static str) -> Self {
        Self { named_by: Some(option), ..self }
    }

    /// Whether plugins must be signed.
    pub fn requires_signatures(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The files with keys.
    pub fn key_files(&self) -> Vec<PathBuf> {
        let file = |key: &TrustedKey| match key {
            TrustedKey::Pem(_) => None,
            TrustedKey::File(file) => Some(file.clone()),
        };
        self.keys.iter().filter_map(file).collect()
    }

    /// A fingerprint of the files with keys.
    pub(crate) fn fingerprint(&self) -> String {
        let read = |file: PathBuf| crate::files::read(&file, keys::MAX_SIZE).unwrap_or_default();
        self.key_files().into_iter().map(|file| format!(" {}", Digest::of(&read(file)))).collect()
    }

    /// Whether a version of a plugin may decide. Returns the number that it is signed with, if any.
    ///
    /// # Errors
    /// The reason and the remedy: the second half of a sentence that begins with the plugin.
    pub fn check(
        &self,
        name: &str,
        bytes: &[u8],
        signature: Option<&[u8]>,
        pin: Option<Digest>,
    ) -> Result<Option<u64>, ArtifactError> {
        if let Some(pin) = pin {
            check_pin(name, bytes, pin)?;
        }
        if self.keys.is_empty() {
            return Ok(None);
        }
        let named_by = self.named_by.unwrap_or("`[policies] trusted_keys`");
        let keys = keys::read_all(&self.keys, named_by)?;
        let Some(signature) = signature else {
            return Err(untrusted(format!(
                "is not signed, and {named_by} lets only signed plugins decide; {SIGN_IT}"
            )));
        };
        let signed = signature::parse(signature)
            .map_err(|why| why.map_text(|why| format!("has a signature that {why}")))?;
        let (text, signature) = match &signed {
            ParsedSignature::Statement(statement, signature) => {
                (statement.to_string().into_bytes(), signature)
            }
            ParsedSignature::Bare(signature) => (bytes.to_vec(), signature),
        };
        // Strict: rejects keys and signatures that allow several signatures to verify.
        if !keys.iter().any(|key| key.verify_strict(&text, signature).is_ok()) {
            return Err(untrusted(format!(
                "is signed by none of the {} keys of {named_by}, or was changed after it was signed (sha256 {}); {SIGN_IT}",
                keys.len(),
                Digest::of(bytes)
            )));
        }
        match &signed {
            ParsedSignature::Statement(statement, _) => check_statement(name, bytes, statement).map(Some),
            ParsedSignature::Bare(_) if self.bare => Ok(None),
            ParsedSignature::Bare(_) => Err(untrusted(format!(
                "has a signature of the file alone, which binds neither the plugin's name nor its version; {SIGN_IT}, or accept such signatures: `[policies] bare_signatures = true`"
            ))),
        }
    }
}

fn untrusted(why: String) -> ArtifactError {
    ArtifactError::Untrusted(why)
}

/// How to create a signature.
const SIGN_IT: &str = "sign it: `halley plugin sign --key KEY.pem --name NAME --number NUMBER PLUGIN.wasm` (a key pair: `openssl genpkey -algorithm ed25519 -out KEY.pem`, then `openssl pkey -in KEY.pem -pubout -out keys/ops.pem`)";

/// Checks that the statement is for this plugin and this file. Returns its number.
fn check_statement(name: &str, bytes: &[u8], statement: &Statement) -> Result<u64, ArtifactError> {
    let hash = Digest::of(bytes);
    if statement.sha256 != hash {
        return Err(untrusted(format!(
            "was changed after it was signed: it has the sha256 {hash}, and its signature is of {}; {SIGN_IT}",
            statement.sha256
        )));
    }
    if statement.name != name {
        return Err(untrusted(format!("is signed as `{}`, and not for `{name}`; {SIGN_IT}", statement.name)));
    }
    Ok(statement.version)
}

/// Whether a version may become active that was not active before: its number must not be lower than
/// the highest one that was active.
///
/// # Errors
/// The reason and the remedy.
pub(crate) fn check_order(
    name: &str,
    version: Option<u64>,
    highest: Option<u64>,
) -> Result<(), ArtifactError> {
    let Some(highest) = highest.filter(|highest| version.unwrap_or_default() < *highest) else {
        return Ok(());
    };
    let signed = version
        .map_or("has no signed number".to_owned(), |version| format!("is signed as version {version}"));
    Err(untrusted(format!(
        "{signed}, and version {highest} was active before; an older one comes back by `halley plugin rollback {name}`, or with `allow_downgrade = true` in its [[plugin]]"
    )))
}

fn check_pin(name: &str, bytes: &[u8], pin: Digest) -> Result<(), ArtifactError> {
    let hash = Digest::of(bytes);
    if hash == pin {
        return Ok(());
    }
    Err(untrusted(format!(
        "has the sha256 {hash}, and [[plugin]] `{name}` is pinned to {pin}; use that version, or change `sha256` in the configuration if this one is right"
    )))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
    use ed25519_dalek::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
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
        let key = key(seed).to_pkcs8_pem(LineEnding::LF).unwrap();
        sign(&key, "p", 1, bytes).unwrap().into_bytes()
    }

    fn bare(seed: u8, bytes: &[u8]) -> Vec<u8> {
        key(seed).sign(bytes).to_bytes().to_vec()
    }

    #[test]
    fn a_pin_is_enforced_with_and_without_keys() {
        let (open, keyed) = (PluginTrust::default(), PluginTrust::new(vec![pem(1).into()]));
        let (hash, other) = (Digest::of(BYTES), Digest::of(b"other"));
        let signature = signed(1, BYTES);
        assert_eq!(open.check("p", BYTES, None, None), Ok(None));
        assert_eq!(open.check("p", BYTES, None, Some(hash)), Ok(None));
        for trust in [open, keyed] {
            let why = trust.check("p", BYTES, Some(&signature), Some(other)).unwrap_err().to_string();
            assert!(
                why.contains(&hash.to_string())
                    && why.contains(&other.to_string())
                    && why.contains("change `sha256`"),
                "{why}"
            );
        }
    }

    #[test]
    fn unsigned_plugins_are_refused() {
        let trust = PluginTrust::new(vec![pem(1).into(), (pem(2) + &pem(3)).into()]);
        let check = |signature: Option<&[u8]>| trust.check("p", BYTES, signature, None);
        for seed in [1, 2, 3] {
            assert_eq!(check(Some(&signed(seed, BYTES))), Ok(Some(1)), "key {seed}");
        }
        let text = base64::engine::general_purpose::STANDARD.encode(signed(2, BYTES));
        assert_eq!(check(Some(format!("{text}\n").as_bytes())), Ok(Some(1)));
        assert!(check(None).unwrap_err().to_string().contains("halley plugin sign"));
        assert!(check(Some(&signed(4, BYTES))).unwrap_err().to_string().contains("none of the 3 keys"));
        assert!(
            check(Some(&signed(1, b"else")))
                .unwrap_err()
                .to_string()
                .contains("was changed after it was signed")
        );
        let tampered = String::from_utf8(signed(1, BYTES)).unwrap().replace("version: 1", "version: 9");
        assert!(check(Some(tampered.as_bytes())).unwrap_err().to_string().contains("none of the 3 keys"));
        assert!(check(Some(b"nonsense")).unwrap_err().to_string().contains("sign the plugin again"));
        assert!(!check(None).unwrap_err().is_transient(), "only another file or key helps");
        let other = trust.check("q", BYTES, Some(&signed(1, BYTES)), None).unwrap_err().to_string();
        assert!(other.contains("is signed as `p`, and not for `q`"), "{other}");
    }

    #[test]
    fn bare_signatures_need_configuration() {
        let trust = PluginTrust::new(vec![pem(1).into()]);
        let check = |trust: &PluginTrust, seed| trust.check("p", BYTES, Some(&bare(seed, BYTES)), None);
        assert!(check(&trust, 1).unwrap_err().to_string().contains("bare_signatures = true"));
        let trust = trust.with_bare_signatures(true);
        assert_eq!(check(&trust, 1), Ok(None));
        assert!(check(&trust, 2).unwrap_err().to_string().contains("none of the 1 keys"));
    }

    #[test]
    fn version_numbers_cannot_decrease() {
        for (version, highest) in [(None, None), (Some(1), None), (Some(5), Some(5)), (Some(6), Some(5))] {
            assert_eq!(check_order("p", version, highest), Ok(()));
        }
        for (version, highest) in [(Some(4), Some(5)), (None, Some(1))] {
            let why = check_order("p", version, highest).unwrap_err().to_string();
            assert!(why.contains("halley plugin rollback p") && why.contains("allow_downgrade"), "{why}");
        }
    }

    #[test]
    fn unusable_keys_refuse_every_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ops.pem");
        let trust = PluginTrust::new(vec![TrustedKey::File(file.clone())]);
        let check = || trust.check("p", BYTES, Some(&signed(1, BYTES)), None);
        let why = check().unwrap_err();
        assert!(why.is_transient() && why.to_string().contains("cannot be read"), "{why}");
        for (content, why) in [
            ("", "no public key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no ed25519 public key"),
        ] {
            std::fs::write(&file, content).unwrap();
            let error = check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        std::fs::write(&file, pem(1)).unwrap();
        assert_eq!(check(), Ok(Some(1)));
        std::fs::write(&file, pem(2)).unwrap();
        assert!(check().is_err(), "the key was changed");
        assert_eq!(trust.key_files(), [file]);
    }
}
