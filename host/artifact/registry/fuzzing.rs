//! Arbitrary responses of a registry, and where its credentials go.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, RequestBuilder, Url};

use super::RegistryConfig;
use super::challenge::{self, AuthChallenge};
use super::client::{self, RegistrySession, token_in};
use super::manifest::{MAX_SIZE, MEDIA_TYPES, SIGNATURE, plugin_of};
use super::reference::is_sha256;
use crate::digest::Digest;

/// The maximum length of a reason, whatever the registry sent.
const LONGEST_REASON: usize = 2_000;
const SECRET: &str = "opensesame";
const LISTED: [&str; 3] = ["auth.example", "*.blobs.example", "127.0.0.1:7000"];

/// Checks one response.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3u8)? {
        0 => check_manifest(input),
        1 => check_token(input),
        2 => check_challenges(input),
        _ => check_redirects(input),
    }
}

fn check_manifest(input: &mut Unstructured<'_>) -> Result<()> {
    let manifest = if input.arbitrary()? { manifest(input)? } else { input.bytes(input.len())?.to_vec() };
    let digest = format!("sha256:{}", Digest::of(&manifest));
    match plugin_of(&digest, &manifest) {
        Ok((layer, _)) => {
            assert!(is_sha256(&layer.digest) && MEDIA_TYPES.contains(&&*layer.media_type));
            assert!(u64::try_from(layer.size).is_ok_and(|size| size <= MAX_SIZE as u64), "{}", layer.size);
        }
        Err(why) => assert_reason(&why.to_string()),
    }
    let other = format!("sha256:{}", "0".repeat(64));
    assert!(plugin_of(&other, &manifest).is_err(), "its digest does not match");
    Ok(())
}

fn check_token(input: &mut Unstructured<'_>) -> Result<()> {
    let answer = match input.int_in_range(0..=2u8)? {
        0 => serde_json::json!({ "token": input.arbitrary::<&str>()? }).to_string().into_bytes(),
        1 => serde_json::json!({ "access_token": input.arbitrary::<&str>()? }).to_string().into_bytes(),
        _ => input.bytes(input.len())?.to_vec(),
    };
    match token_in(&answer) {
        Ok(token) => assert!(token.is_sensitive() && token.as_bytes().starts_with(b"Bearer ")),
        Err(why) => assert_reason(&why.to_string()),
    }
    Ok(())
}

/// Credentials only go to realms of the registry's own site, and to listed sites.
fn check_challenges(input: &mut Unstructured<'_>) -> Result<()> {
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(1..=3u8)? {
        headers.push(if input.arbitrary()? {
            let (realm, service) = (place(input)?, input.arbitrary::<&str>()?);
            format!("Bearer realm=\"{realm}\",service=\"{service}\"")
        } else {
            input.arbitrary::<String>()?
        });
    }
    let Some(AuthChallenge::Bearer { realm, service }) = challenge::parse(headers.iter().map(String::as_str))
    else {
        return Ok(());
    };
    let (config, reference) = (config(), reference());
    let session = session(&config, &reference, RegistryAuth::Basic("user".into(), SECRET.into()));
    match session.ask_for_token(&realm, service.as_deref()) {
        Ok(request) => {
            if let Some((url, _)) = sent(request) {
                assert!(is_own(&url) || is_listed(&url), "credentials went to {url}");
            }
        }
        Err(why) => assert_reason(&why.to_string()),
    }
    Ok(())
}

/// Redirects only lead to the registry and to listed sites; its authorization only goes to itself.
fn check_redirects(input: &mut Unstructured<'_>) -> Result<()> {
    let (config, reference) = (config(), reference());
    let session = session(&config, &reference, RegistryAuth::Bearer(SECRET.into()));
    let mut url: Url = "https://registry.example/v2/team/policy/blobs/x".parse().expect("a URL");
    for _ in 0..input.int_in_range(1..=4u8)? {
        let location =
            if input.arbitrary()? { place(input)?.into_bytes() } else { input.arbitrary::<Vec<u8>>()? };
        let location = HeaderValue::from_bytes(&location).ok();
        match session.redirected(&url, location.as_ref()) {
            Ok(to) => url = to,
            Err(why) => {
                assert_reason(&why.to_string());
                break;
            }
        }
        assert!(is_own(&url) || is_listed(&url), "led to {url}");
        if let Some((url, has_secret)) = sent(session.ask(&url)) {
            assert_eq!(has_secret, is_own(&url), "{url}");
        }
    }
    Ok(())
}

/// The target of a request, and whether it carries the secret. Checks that nothing else is in its
/// authorization.
fn sent(request: RequestBuilder) -> Option<(Url, bool)> {
    let request = request.build().ok()?;
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let value = values.next();
    assert_eq!(values.next(), None, "one authorization");
    let basic = "Basic dXNlcjpvcGVuc2VzYW1l";
    assert!(value.is_none_or(|value| value == basic || *value == format!("Bearer {SECRET}")));
    Some((request.url().clone(), value.is_some()))
}

/// The registry's own site, defined independently of the rule under test.
fn is_own(url: &Url) -> bool {
    url.origin().ascii_serialization() == "https://registry.example"
}

fn is_listed(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let is_below = host.strip_suffix(".blobs.example").is_some_and(|name| !name.is_empty());
    match (url.scheme(), url.port_or_known_default()) {
        ("https", Some(443)) => host == "auth.example" || is_below,
        ("http" | "https", Some(7000)) => host == "127.0.0.1",
        _ => false,
    }
}

fn assert_reason(why: &str) {
    assert!(why.chars().count() <= LONGEST_REASON && !why.contains(SECRET), "{} bytes", why.len());
}

fn config() -> RegistryConfig {
    RegistryConfig { trusted_hosts: LISTED.map(str::to_owned).into() }
}

fn reference() -> Reference {
    let digest = "0".repeat(64);
    format!("registry.example/team/policy@sha256:{digest}").parse().expect("a reference")
}

fn session<'a>(
    config: &'a RegistryConfig,
    reference: &'a Reference,
    credentials: RegistryAuth,
) -> RegistrySession<'a> {
    // Creating a client is expensive.
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let client = CLIENT.get_or_init(|| client::client().expect("a client")).clone();
    RegistrySession::with(client, config, reference, credentials).expect("a session")
}

/// A plausible manifest.
fn manifest(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut layers = Vec::new();
    for _ in 0..input.int_in_range(0..=3u8)? {
        let media = if input.ratio(3, 4)? { *input.choose(&MEDIA_TYPES)? } else { input.arbitrary()? };
        let digest = match input.arbitrary()? {
            true => format!("sha256:{}", Digest::of(input.arbitrary::<&[u8]>()?)),
            false => input.arbitrary::<String>()?,
        };
        let size = input.arbitrary::<i64>()?;
        let annotations = serde_json::json!({ SIGNATURE: input.arbitrary::<&str>()? });
        layers.push(serde_json::json!({ "mediaType": media, "digest": digest, "size": size,
            "annotations": annotations }));
    }
    let config = serde_json::json!({ "mediaType": "x", "digest": "x", "size": 0 });
    let mut manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    if input.ratio(1, 4)? {
        let length = input.int_in_range(0..=4_096)?;
        let field = *input.choose(&["schemaVersion", "config", "layers", "annotations"])?;
        manifest[field] = "x".repeat(length).into();
    }
    Ok(manifest.to_string().into_bytes())
}

/// A plausible URL, similar to the allowed ones.
fn place(input: &mut Unstructured<'_>) -> Result<String> {
    let scheme = *input.choose(&["https://", "http://", "//", "https:", "HTTPS:\\\\", "/", "", "file://"])?;
    let user = *input.choose(&["", "", "registry.example@", "user:password@", "auth.example:443@"])?;
    let host = match input.int_in_range(0..=11u8)? {
        0 => "registry.example",
        1 => "auth.example",
        2 => "eu.blobs.example",
        3 => "blobs.example",
        4 => "evilblobs.example",
        5 => "registry.example.evil",
        6 => "127.0.0.1",
        7 => "0x7f.1",
        8 => "[::ffff:127.0.0.1]",
        9 => "169.254.169.254",
        10 => "auth.example.",
        _ => input.arbitrary()?,
    };
    let port = *input.choose(&["", "", ":443", ":80", ":7000", ":07000", ":", ":x"])?;
    Ok(format!("{scheme}{user}{host}{port}/{}", input.arbitrary::<&str>()?))
}
