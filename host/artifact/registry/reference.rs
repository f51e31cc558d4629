//! References to a registry's content: `oci://registry/repository@sha256:...`.

use std::str::FromStr;

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

/// A reference of the command line: `oci://registry/repository:tag`, or with a digest.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{SCHEME}{_0}")]
pub(crate) struct TaggedReference(Reference);

impl TaggedReference {
    pub(super) fn reference(&self) -> &Reference {
        &self.0
    }

    /// Whether it names one content, and not a tag only.
    pub(crate) fn has_digest(&self) -> bool {
        self.0.digest().is_some()
    }

    /// The last part of the repository.
    pub(crate) fn name(&self) -> &str {
        self.0.repository().rsplit('/').next().unwrap_or_default()
    }

    /// The same with this digest.
    pub(super) fn with_digest(&self, digest: &str) -> String {
        let text = self.to_string();
        let tagged = text.split('@').next().unwrap_or_default();
        format!("{tagged}@{digest}")
    }
}

impl FromStr for TaggedReference {
    type Err = ArtifactError;

    fn from_str(text: &str) -> Result<Self, ArtifactError> {
        let bad = |why: &str| {
            ArtifactError::Reference(format!("{why}; expected oci://registry[:port]/repository:tag"))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("not a reference into a registry"))?;
        let reference: Reference = rest.parse().map_err(|why| bad(&format!("not a reference ({why})")))?;
        let (host, repository) = rest.split_once('/').unwrap_or_default();
        if host != reference.registry() {
            return Err(bad("no registry is named"));
        }
        match reference.digest() {
            // Without a tag, it would be `latest`: what is meant has to be said.
            None if !repository.contains(':') => Err(bad("neither a tag nor a digest is named")),
            Some(digest) if !is_sha256(digest) => Err(bad("the digest is not a sha256")),
            _ => Ok(Self(reference)),
        }
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

    #[test]
    fn commands_take_tags_and_digests() {
        let with = |text: &str| text.parse::<TaggedReference>();
        let tagged = with("oci://registry.example:5000/team/policy:1.0").unwrap();
        assert_eq!((tagged.name(), tagged.has_digest()), ("policy", false));
        let digest = format!("sha256:{HEX}");
        let pinned = tagged.with_digest(&digest);
        assert_eq!(pinned, format!("oci://registry.example:5000/team/policy:1.0@{digest}"));
        assert!(reference(&pinned).is_ok() && with(&pinned).unwrap().has_digest());
        for (bad, why) in [
            ("registry.example/policy:1.0", "not a reference into a registry"),
            ("oci://registry.example:5000/policy", "neither a tag nor a digest"),
            ("oci://policy:1.0", "no registry"),
            ("oci://", "not a reference"),
        ] {
            let error = with(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
