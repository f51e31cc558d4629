//! Credentials for registries, as written by `docker login` and similar tools.
//!
//! They are read again for every fetch: from the environment variable DOCKER_AUTH_CONFIG (the content
//! itself), else from `config.json` in DOCKER_CONFIG or `~/.docker`. A credential helper that is
//! configured there for the registry, or for all registries, is asked first (see [`helper`]).
//! Credentials never appear in an error or a log.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde_json::Value;

use crate::artifact::error::ArtifactError;
use crate::artifact::registry::helper::{self, HelperError, Login};
use crate::files::read;

/// The maximum size of the file, in bytes.
const MAX_SIZE: u64 = 1024 * 1024;
/// The user name with which helpers mark an identity token, which is not a password.
const IDENTITY_TOKEN: &str = "<token>";

/// The credentials for a registry (`host` or `host:port`); anonymous if none are configured.
///
/// # Errors
/// When they cannot be read.
pub(super) fn of(registry: &str) -> Result<RegistryAuth, ArtifactError> {
    if let Ok(text) = std::env::var("DOCKER_AUTH_CONFIG") {
        return find(&text, "DOCKER_AUTH_CONFIG", registry, &ask);
    }
    let Some(file) = file() else { return Ok(RegistryAuth::Anonymous) };
    match read(&file, MAX_SIZE) {
        Ok(text) => find(&String::from_utf8_lossy(&text), &file.display().to_string(), registry, &ask),
        Err(why) if why.is_missing() => Ok(RegistryAuth::Anonymous),
        Err(why) => Err(wrong(format!("the registry's credentials: {} {why}", file.display()))),
    }
}

fn file() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    Some(folder.or_else(home)?.join("config.json"))
}

/// Asks the helper with this name for the credentials of a server.
type Ask<'a> = &'a dyn Fn(&str, &str) -> Result<Option<Login>, HelperError>;

fn ask(name: &str, server: &str) -> Result<Option<Login>, HelperError> {
    helper::ask(helper::command(name)?, server, helper::DEADLINE)
}

fn find(text: &str, place: &str, registry: &str, ask: Ask<'_>) -> Result<RegistryAuth, ArtifactError> {
    // The parser's message could quote a secret.
    let config: Value = serde_json::from_str(text)
        .map_err(|_| wrong(format!("the registry's credentials in {place} are not JSON")))?;
    let auths = config["auths"].as_object().into_iter().flatten();
    let entry = auths.into_iter().find(|(name, _)| host_of(name) == registry);
    // Credentials in a helper have an empty entry, whose key is the server's name for the helper.
    let server = entry.map_or(registry, |(name, _)| name);
    let helper = config["credHelpers"][registry].as_str().or_else(|| config["credsStore"].as_str());
    if let Some(name) = helper.filter(|name| !name.is_empty()) {
        let asked = ask(name, server);
        let login = asked.map_err(|why| {
            wrong(format!(
                "the credential helper `{name}`, which {place} names for {registry}, is of no use: {why}"
            ))
        })?;
        match login {
            Some(login) if login.username == IDENTITY_TOKEN => {
                return Err(wrong(format!(
                    "the credential helper `{name}` has an identity token for {registry}, which cannot be used here; log in with a user's name and an access token"
                )));
            }
            Some(login) => return Ok(RegistryAuth::Basic(login.username, login.secret)),
            None => {}
        }
    }
    match entry {
        Some((_, entry)) if entry.as_object().is_some_and(|entry| !entry.is_empty()) => login_of(entry)
            .ok_or_else(|| {
                wrong(format!(
                    "the credentials for {registry} in {place} are not as `docker login` writes them"
                ))
            }),
        _ => Ok(RegistryAuth::Anonymous),
    }
}

/// Credentials that cannot be used; they are read again for every fetch.
fn wrong(why: String) -> ArtifactError {
    ArtifactError::Registry(why)
}

fn login_of(entry: &Value) -> Option<RegistryAuth> {
    if let Some(token) = entry["registrytoken"].as_str() {
        return Some(RegistryAuth::Bearer(token.to_owned()));
    }
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    let pair = STANDARD.decode(entry["auth"].as_str()?.trim()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Entries are hosts, or URLs as older tools wrote them.
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
        let nobody = |_: &str, _: &str| panic!("no helper is named");
        let of = |registry: &str| find(text, "here", registry, &nobody);
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        assert_eq!(of("one.example"), Ok(basic("user", "pass:word")));
        assert_eq!(of("two.example:5000"), Ok(basic("a", "b")));
        assert_eq!(of("two.example"), Ok(RegistryAuth::Anonymous), "another port is another registry");
        assert_eq!(of("three.example"), Ok(RegistryAuth::Bearer("t".into())));
        assert!(!of("four.example").unwrap_err().to_string().contains("secret"));
        assert!(
            !find("{ secret", "here", "one.example", &nobody).unwrap_err().to_string().contains("secret")
        );
    }

    #[test]
    fn a_helper_is_asked_first_and_under_the_name_that_it_knows() {
        let text = r#"{ "credsStore": "all", "credHelpers": { "one.example": "own" }, "auths": {
            "https://index.docker.io/v1/": {},
            "two.example": { "username": "a", "password": "b" } } }"#;
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        let answer =
            |name: &str, server: &str| Ok(Some(Login { username: name.into(), secret: server.into() }));
        let of = |registry: &str| find(text, "here", registry, &answer);
        assert_eq!(of("one.example"), Ok(basic("own", "one.example")));
        assert_eq!(of("index.docker.io"), Ok(basic("all", "https://index.docker.io/v1/")));
        let none = |registry: &str| find(text, "here", registry, &|_, _| Ok(None));
        assert_eq!(none("two.example"), Ok(basic("a", "b")), "what stands in the file");
        assert_eq!(none("index.docker.io"), Ok(RegistryAuth::Anonymous));
        let token = |_: &str, _: &str| Ok(Some(Login { username: "<token>".into(), secret: "s3".into() }));
        let why = find(text, "here", "one.example", &token).expect_err("no password").to_string();
        assert!(why.contains("identity token") && !why.contains("s3"), "{why}");
        let away = |_: &str, _: &str| Err(HelperError::Timeout(helper::DEADLINE));
        let why = find(text, "here", "one.example", &away).expect_err("the helper hangs").to_string();
        assert!(why.contains("`own`") && why.contains("within 10s"), "{why}");
    }
}
