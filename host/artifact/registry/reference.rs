//! References to a registry's content: `oci://registry/repository@sha256:...`.

use oci_client::Reference;

use crate::artifact::error::ArtifactError;

/// The scheme of references.
pub(in crate::artifact) const SCHEME: &str = "oci://";

/// Parses what follows the scheme.
pub(in crate::artifact) fn parse(text: &str) -> Result<Reference, ArtifactError> {
    let shape = "expected oci://registry[:port]/repository@sha256:<64 hex digits>";
    let bad = ArtifactError::Reference;
    let reference: Reference =
        text.parse().map_err(|e| bad(format!("`path` is not a reference ({e}); {shape}")))?;
    let host = text.split('/').next().unwrap_or_default();
    if host != reference.registry() {
        return Err(bad(format!("`path` names no registry; {shape}")));
    }
    match reference.digest() {
        None => Err(bad(format!(
            "`path` names a tag, which can be moved to other content; {shape} (`oras resolve` and `crane digest` print its digest)"
        ))),
        Some(digest) if is_sha256(digest) => Ok(reference),
        Some(_) => Err(bad(format!("`path` has a digest that is not a sha256; {shape}"))),
    }
}

pub(super) fn is_sha256(digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:");
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn reference(text: &str) -> Result<Reference, ArtifactError> {
        parse(text.strip_prefix(SCHEME).unwrap())
    }

    #[test]
    fn references_name_a_registry_and_a_digest() {
        let good = format!("oci://registry.example:5000/team/policy@sha256:{HEX}");
        assert!(reference(&good).is_ok());
        assert!(reference(&good.replace('@', ":1.0@")).is_ok(), "a tag next to the digest is for people");
        for (bad, why) in [
            ("oci://registry.example/policy:1.0", "names a tag"),
            ("oci://registry.example/policy", "names a tag"),
            (&*format!("oci://policy@sha256:{HEX}"), "no registry"),
            ("oci://registry.example/policy@sha256:12", "not a reference"),
            ("oci://", "not a reference"),
        ] {
            let error = reference(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
