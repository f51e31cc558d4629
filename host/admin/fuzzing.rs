//! Fuzzing: arbitrary requests, and whether they are allowed.

use std::net::{IpAddr, SocketAddr};

use arbitrary::{Result, Unstructured};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use prometheus_client::registry::Registry;

use super::Config;
use super::access::{AccessControl, Caller, Permission};
use super::tokens::Role;
use crate::http_server::peer::{Peer, current_uid};
use crate::http_server::refusals::Refusals;
use crate::http_server::token::Tokens;

const WRITE: &str = "0123456789abcdef";
const READ: &str = "fedcba9876543210";
/// Maximum length of a reason, in characters.
const LONGEST_REASON: usize = 600;
const NAMES: [&str; 8] =
    ["host", "host", "authorization", "authorization", "origin", "x-forwarded-for", "forwarded", "cookie"];
const VALUES: [&str; 20] = [
    "localhost",
    "localhost.",
    "LOCALHOST:9093",
    "halley.example:80",
    "127.0.0.1:9093",
    "[::1]",
    "10.0.0.1",
    "127.1",
    "0x7f000001",
    "evil.example",
    "evil.example@localhost",
    "localhost:9093@evil.example",
    "127.0.0.1.evil.example",
    "Bearer 0123456789abcdef",
    "Bearer   0123456789abcdef ",
    "bearer 0123456789abcdef",
    "Bearer fedcba9876543210",
    "Bearer 0123456789abcde",
    "null",
    "",
];
const TARGETS: [&str; 8] = [
    "/v1/plugins/p",
    "/metrics",
    "*",
    "http://localhost/",
    "http://evil.example/",
    "http://localhost@evil.example/",
    "//evil.example/",
    "localhost:9093",
];

/// Checks that only permitted requests are allowed.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let listen = *input.choose(&["127.0.0.1:9093", "0.0.0.0:9093"])?;
    let needs =
        *input.choose(&[Permission::Host, Permission::Read, Permission::Operate, Permission::Push])?;
    let has = (input.arbitrary()?, input.arbitrary()?);
    let (peer, uri, headers) = (peer(input)?, uri(input)?, headers(input)?);

    let config =
        Config { listen: listen.into(), allowed_hosts: vec!["halley.example".into()], ..Config::default() };
    let address = listen.parse().expect("an address");
    let access = AccessControl::new(
        &config,
        address,
        Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin"),
    );
    let mut tokens = Tokens::default();
    if has.0 {
        tokens.add("operator", WRITE, &[Role::Operate, Role::PushPolicies]);
    }
    if has.1 {
        tokens.add("reader", READ, &[Role::Read]);
    }
    let admitted = access.is_admitted_without_token(peer, needs, &uri, &headers).and_then(|already| {
        if already { Ok(Caller(None)) } else { access.check_token(peer, needs, &headers, &tokens) }
    });
    if let Err(denied) = admitted {
        assert!(denied.why.chars().count() <= LONGEST_REASON, "{}", denied.why);
        let status = denied.into_response().status();
        assert!(status.is_client_error(), "{status}");
        return Ok(());
    }
    let is_write_token = has.0 && is_bearer(&headers, WRITE);
    let is_read_token = has.1 && is_bearer(&headers, READ);
    let is_open = has == (false, false) && address.ip().is_loopback() && matches!(peer, Peer::Tcp(_));
    let is_operator = matches!(peer, Peer::Unix(Some(user)) if user == 0 || user == current_uid());
    match needs {
        Permission::Operate | Permission::Push => {
            assert!(is_operator || is_write_token, "a write of {peer}");
            assert!(!headers.contains_key(header::ORIGIN), "a write from a browser");
        }
        Permission::Read => {
            assert!(is_operator || is_write_token || is_read_token || is_open, "a read of {peer}")
        }
        Permission::Host => {}
    }
    if let Peer::Tcp(_) = peer {
        assert!(is_ours(&uri, &headers), "for another host: {uri} {headers:?}");
    }
    Ok(())
}

/// Exactly one token. Written independently, so that the check does not test itself.
fn is_bearer(headers: &HeaderMap, token: &str) -> bool {
    let given: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().collect();
    let [given] = given[..] else { return false };
    given.as_bytes().strip_prefix(b"Bearer ").is_some_and(|given| given.trim_ascii() == token.as_bytes())
}

/// Exactly one host, which is an address or an allowed name.
fn is_ours(uri: &Uri, headers: &HeaderMap) -> bool {
    let given: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let [host] = given[..] else { return false };
    let Ok(host) = host.to_str() else { return false };
    let has_port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = has_port.filter(|(name, _)| !name.starts_with('[') || name.ends_with(']'));
    let name = name.map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let known = name.strip_suffix('.').unwrap_or(name);
    let is_known = ["localhost", "halley.example"].iter().any(|own| known.eq_ignore_ascii_case(own));
    let same = uri.authority().is_none_or(|named| named.as_str().eq_ignore_ascii_case(host));
    same && (is_known || bare.parse::<IpAddr>().is_ok())
}

fn peer(input: &mut Unstructured<'_>) -> Result<Peer> {
    Ok(match input.int_in_range(0..=5u8)? {
        0 => Peer::Unix(None),
        1 => Peer::Unix(Some(current_uid())),
        2 => Peer::Unix(Some(input.arbitrary()?)),
        3 => Peer::Tcp(SocketAddr::from((input.arbitrary::<[u8; 16]>()?, input.arbitrary()?))),
        4 => Peer::Tcp(SocketAddr::from((input.arbitrary::<[u8; 4]>()?, input.arbitrary()?))),
        _ => Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 40_000))),
    })
}

/// An arbitrary request target; `/` if the bytes are not one.
fn uri(input: &mut Unstructured<'_>) -> Result<Uri> {
    let text = if input.ratio(3, 4)? { input.choose(&TARGETS)?.as_bytes() } else { input.arbitrary()? };
    Ok(Uri::try_from(text).unwrap_or_default())
}

fn headers(input: &mut Unstructured<'_>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for _ in 0..input.int_in_range(0..=6u8)? {
        let name = if input.ratio(7, 8)? { input.choose(&NAMES)?.as_bytes() } else { input.arbitrary()? };
        let value = if input.ratio(3, 4)? { input.choose(&VALUES)?.as_bytes() } else { input.arbitrary()? };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}
