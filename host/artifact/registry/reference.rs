//! References to a registry's content: `oci://registry/repository@sha256:...`.

use std::path::Path;

use oci_client::Reference;

/// The scheme of references.
const SCHEME: &str = "oci://";

/// Whether a plugin's path is a reference into a registry.
pub(crate) fn is_reference(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(SCHEME))
}

/// Parses a plugin's path as a reference; `None` if it is a file.
pub(crate) fn reference(path: &Path) -> Option<Result<Reference, String>> {
    let text = path.to_str()?.strip_prefix(SCHEME)?;
    Some(parse(text))
}

fn parse(text: &str) -> Result<Reference, String> {
    let shape = "expected oci://registry[:port]/repository@sha256:<64 hex digits>";
    let reference: Reference =
        text.parse().map_err(|e| format!("`path` is not a reference ({e}); {shape}"))?;
    let host = text.split('/').next().unwrap_or_default();
    if host != reference.registry() {
        return Err(format!("`path` names no registry; {shape}"));
    }
    match reference.digest() {
        None => Err(format!(
            "`path` names a tag, which can be moved to other content; {shape} (`oras resolve` and `crane digest` print its digest)"
        )),
        Some(digest) if is_sha256(digest) => Ok(reference),
        Some(_) => Err(format!("`path` has a digest that is not a sha256; {shape}")),
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

    #[test]
    fn references_name_a_registry_and_a_digest() {
        let good = format!("oci://registry.example:5000/team/policy@sha256:{HEX}");
        assert!(reference(Path::new(&good)).unwrap().is_ok());
        assert!(
            reference(Path::new(&good.replace('@', ":1.0@"))).unwrap().is_ok(),
            "a tag next to the digest is for people"
        );
        assert!(reference(Path::new("policies/a.wasm")).is_none());
        for (bad, why) in [
            ("oci://registry.example/policy:1.0", "names a tag"),
            ("oci://registry.example/policy", "names a tag"),
            (&*format!("oci://policy@sha256:{HEX}"), "no registry"),
            ("oci://registry.example/policy@sha256:12", "not a reference"),
            ("oci://", "not a reference"),
        ] {
            let error = reference(Path::new(bad)).unwrap().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
