//! The authentication that a registry requires: the header `WWW-Authenticate` (RFC 9110, 11.6.1; the
//! distribution specification's token authentication).

/// A required authentication.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthChallenge {
    /// A name and a password with each request.
    Basic,
    /// A token, issued by the realm.
    Bearer {
        /// The URL that issues tokens.
        realm: String,
        /// The service that the token is for.
        service: Option<String>,
    },
}

/// The first supported challenge of these headers; tokens are preferred.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<AuthChallenge> {
    let mut found = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            found = found.or(Some(AuthChallenge::Basic));
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let value = |name| parameters(rest).find(|(key, _)| key.eq_ignore_ascii_case(name));
            if let Some((_, realm)) = value("realm") {
                return Some(AuthChallenge::Bearer {
                    realm,
                    service: value("service").map(|(_, value)| value),
                });
            }
        }
    }
    found
}

/// `key="value", key=value`.
fn parameters(text: &str) -> impl Iterator<Item = (&str, String)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        rest = after.trim_start().strip_prefix(',').unwrap_or("");
        Some((key.trim(), value))
    })
}

/// The text up to the closing quote, and the rest after it.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(AuthChallenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) })
        };
        let one = r#"Bearer realm="https://auth.example/token",service="registry, \"x\"",scope="a:b:pull""#;
        assert_eq!(parse([one].into_iter()), bearer("https://auth.example/token", Some("registry, \"x\"")));
        assert_eq!(parse(["bearer service=s, realm=r"].into_iter()), bearer("r", Some("s")));
        assert_eq!(parse(["Basic realm=\"x\"", "Bearer realm=\"r\""].into_iter()), bearer("r", None));
        assert_eq!(parse(["Basic realm=\"x\""].into_iter()), Some(AuthChallenge::Basic));
        for nothing in ["", "Bearer", "Bearer realm", "Negotiate abc", "Bearer x=\"\\", "=,=,\"\""] {
            assert_eq!(parse([nothing].into_iter()), None, "{nothing}");
        }
    }
}
