//! Credentials for registries, where people keep them: what `docker login` and its kin write.
//!
//! Read again for every fetch. From the environment's DOCKER_AUTH_CONFIG (the content itself), else
//! from `config.json` in DOCKER_CONFIG or `~/.docker`. Credential helpers are not asked. Nothing
//! of it goes into an error or a log.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde_json::Value;

use crate::files::read;

/// The largest file with credentials, in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

/// The credentials for a registry (`host` or `host:port`); anonymous where there are none.
///
/// # Errors
/// When they are there and cannot be read.
pub(super) fn of(registry: &str) -> Result<RegistryAuth, String> {
    if let Ok(text) = std::env::var("DOCKER_AUTH_CONFIG") {
        return find(&text, "DOCKER_AUTH_CONFIG", registry);
    }
    let Some(file) = file() else { return Ok(RegistryAuth::Anonymous) };
    match read(&file, MAX_SIZE) {
        Ok(text) => find(&String::from_utf8_lossy(&text), &file.display().to_string(), registry),
        Err(why) if why.is_missing() => Ok(RegistryAuth::Anonymous),
        Err(why) => Err(format!("the registry's credentials: {} {why}", file.display())),
    }
}

fn file() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    Some(folder.or_else(home)?.join("config.json"))
}

fn find(text: &str, place: &str, registry: &str) -> Result<RegistryAuth, String> {
    // The parser's own words could quote a secret.
    let config: Value = serde_json::from_str(text)
        .map_err(|_| format!("the registry's credentials in {place} are not JSON"))?;
    let auths = config["auths"].as_object().into_iter().flatten();
    let Some((_, entry)) = auths.into_iter().find(|(name, _)| host_of(name) == registry) else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let Some(token) = entry["registrytoken"].as_str() {
        return Ok(RegistryAuth::Bearer(token.to_owned()));
    }
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    let pair = entry["auth"].as_str().and_then(|auth| STANDARD.decode(auth.trim()).ok());
    let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
    match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned())),
        None => Err(format!(
            "the credentials for {registry} in {place} are not as `docker login` writes them without a credential helper"
        )),
    }
}

/// Entries are hosts, or URLs as the first of these tools wrote them.
fn host_of(entry: &str) -> &str {
    let bare = entry.split_once("://").map_or(entry, |(_, rest)| rest);
    bare.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry_and_never_quoted() {
        let text = r#"{ "auths": {
            "https://one.example/v1/": { "auth": "dXNlcjpwYXNzOndvcmQ=" },
            "two.example:5000": { "username": "a", "password": "b" },
            "three.example": { "registrytoken": "t" },
            "four.example": { "auth": "secret!" } } }"#;
        let of = |registry: &str| find(text, "here", registry);
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        assert_eq!(of("one.example"), Ok(basic("user", "pass:word")));
        assert_eq!(of("two.example:5000"), Ok(basic("a", "b")));
        assert_eq!(of("two.example"), Ok(RegistryAuth::Anonymous), "another port is another registry");
        assert_eq!(of("three.example"), Ok(RegistryAuth::Bearer("t".into())));
        assert!(!of("four.example").unwrap_err().contains("secret"));
        assert!(!find("{ secret", "here", "one.example").unwrap_err().contains("secret"));
    }
}
