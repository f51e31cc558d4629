//! Exchanges with a registry, on a thread of their own.
//!
//! A registry may be malicious. So every body has a size limit, the whole fetch has a deadline, and
//! requests only go to the registry's own site and to sites that the configuration lists. Credentials
//! only go to the registry and to the realm that issues its tokens; after a redirect, only to the
//! registry itself.
//!
//! This does not use oci-client's own fetching, which reads manifests, errors and tokens without
//! limit, follows every redirect and sends credentials to any realm. It implements the OCI
//! distribution specification 1.1, and its token authentication
//! (distribution.github.io/distribution/spec/auth).

use std::time::Duration;

use bytes::Bytes;
use oci_client::Reference;
use oci_client::manifest::{IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use oci_client::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};

use crate::artifact::error::ArtifactError;
use crate::artifact::registry::challenge::{self, AuthChallenge};
use crate::artifact::registry::site::{RegistryConfig, is_loopback_host, is_same_site};
use crate::telemetry::causes;

/// The deadline of a whole fetch, and of each answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
/// The most redirects of one request.
const MOST_REDIRECTS: usize = 5;
/// The maximum size of a token response, and of an error that is read, in bytes.
const MAX_TOKEN: usize = 64 * 1024;
const MAX_ERROR: usize = 4 * 1024;
/// How much of an error is shown, in characters.
const SHOWN: usize = 200;

/// Runs an exchange with a registry on a thread of its own. `what` names it in errors: "fetched".
///
/// # Errors
/// Those of the exchange, or if it does not end in time.
pub(super) fn on_own_thread<T: Send, F>(
    what: &str,
    deadline: Duration,
    exchange: impl FnOnce() -> F + Send,
) -> Result<T, ArtifactError>
where
    F: Future<Output = Result<T, ArtifactError>>,
{
    // The caller may be inside of an async runtime; a separate thread never is.
    std::thread::scope(|scope| {
        let exchanging = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| failed(format!("cannot be {what}: no runtime: {e}")))?;
            let done = runtime.block_on(async {
                tokio::time::timeout(deadline, exchange()).await.unwrap_or_else(|_| {
                    Err(failed(format!("cannot be {what}: the registry took longer than {deadline:?}")))
                })
            });
            // Resolving a name may still block a thread.
            runtime.shutdown_background();
            done
        });
        exchanging.join().unwrap_or_else(|_| Err(failed(format!("cannot be {what}: the client panicked"))))
    })
}

/// A failure of an exchange with a registry: what was tried, with or without credentials, and the
/// remedy.
pub(super) fn explained(
    what: &str,
    credentials: &RegistryAuth,
    remedy: &str,
) -> impl Fn(ArtifactError) -> ArtifactError + use<> {
    let who = if matches!(credentials, RegistryAuth::Anonymous) { "without" } else { "with" };
    let (what, remedy) = (format!("cannot be {what} (asked {who} credentials)"), remedy.to_owned());
    move |why| {
        why.map_text(|why| {
            format!(
                "{what}: {why}; check the reference, that the registry is reachable, and the credentials (`docker login` writes them){remedy}"
            )
        })
    }
}

/// A client that does not follow redirects.
pub(super) fn client() -> Result<Client, ArtifactError> {
    Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(DEADLINE)
        .redirect(redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("halley/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|why| failed(format!("no client for registries: {}", causes(&why))))
}

/// A session with a registry about one repository.
pub(super) struct RegistrySession<'a> {
    config: &'a RegistryConfig,
    client: Client,
    /// `https://registry/v2/`.
    base: Url,
    repository: &'a str,
    credentials: RegistryAuth,
    /// The authorization that the registry requires, once it has asked for it.
    authorization: Option<HeaderValue>,
    /// What tokens have to permit.
    actions: &'static str,
}

impl<'a> RegistrySession<'a> {
    pub(super) fn new(
        config: &'a RegistryConfig,
        reference: &'a Reference,
        credentials: RegistryAuth,
    ) -> Result<Self, ArtifactError> {
        Self::with(client()?, config, reference, credentials)
    }

    /// As one that pushes as well.
    pub(super) fn for_pushing(self) -> Self {
        Self { actions: "pull,push", ..self }
    }

    /// Over this client.
    pub(super) fn with(
        client: Client,
        config: &'a RegistryConfig,
        reference: &'a Reference,
        credentials: RegistryAuth,
    ) -> Result<Self, ArtifactError> {
        let registry = reference.resolve_registry();
        let place = |scheme| format!("{scheme}://{registry}/v2/").parse::<Url>();
        let no_registry = |why| failed(format!("`{registry}` is no registry: {why}"));
        let mut base = place("https").map_err(no_registry)?;
        if base.host_str().is_some_and(is_loopback_host) {
            base = place("http").map_err(no_registry)?;
        }
        let authorization = match &credentials {
            RegistryAuth::Bearer(token) => Some(bearer(token)?),
            _ => None,
        };
        let repository = reference.repository();
        Ok(Self { config, client, base, repository, credentials, authorization, actions: "pull" })
    }

    /// The URL of something of the repository, such as `manifests/TAG`.
    pub(super) fn url(&self, what: &str) -> Result<Url, ArtifactError> {
        let path = format!("{}/{what}", self.repository);
        self.base.join(&path).map_err(|why| failed(format!("`{path}` is no path: {why}")))
    }

    /// Content with this digest or tag, of `manifests` or `blobs`.
    pub(super) async fn get(
        &mut self,
        what: &str,
        named: &str,
        most: usize,
    ) -> Result<Vec<u8>, ArtifactError> {
        let url = self.url(&format!("{what}/{named}"))?;
        let mut answer = self.follow(url.clone()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.authorize(&answer).await? {
            answer = self.follow(url).await?;
        }
        if !answer.status().is_success() {
            return Err(failed(refusal(answer).await));
        }
        body(answer, most).await
    }

    /// Sends a request that does not follow redirects, after authenticating if the registry requires it.
    pub(super) async fn send(
        &mut self,
        method: Method,
        url: &Url,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response, ArtifactError> {
        let request = |session: &Self| {
            let request = session.request(method.clone(), url);
            match &body {
                Some((media, bytes)) => request.header(CONTENT_TYPE, *media).body(bytes.clone()),
                None => request,
            }
        };
        let answer = send(request(self)).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.authorize(&answer).await? {
            return send(request(self)).await;
        }
        Ok(answer)
    }

    /// Sends a request and follows redirects.
    async fn follow(&self, mut url: Url) -> Result<Response, ArtifactError> {
        for _ in 0..=MOST_REDIRECTS {
            let answer = send(self.ask(&url)).await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            url = self.redirected(&url, answer.headers().get(LOCATION))?;
        }
        Err(failed(format!("the registry redirects more than {MOST_REDIRECTS} times")))
    }

    /// A request for this URL, with authorization if it belongs to the registry itself.
    pub(super) fn ask(&self, url: &Url) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        let accepted = format!("{OCI_IMAGE_MEDIA_TYPE}, {IMAGE_MANIFEST_MEDIA_TYPE}, */*");
        let request = self.client.request(method, url.clone()).header(ACCEPT, accepted);
        match self.authorization.as_ref().filter(|_| is_same_site(&self.base, url)) {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// The target of a redirect, if it is allowed.
    pub(super) fn redirected(
        &self,
        from: &Url,
        location: Option<&HeaderValue>,
    ) -> Result<Url, ArtifactError> {
        let to = location.and_then(|to| to.to_str().ok());
        let to = to
            .and_then(|to| from.join(to).ok())
            .ok_or_else(|| failed("the registry redirects to nowhere"))?;
        if self.config.allows(&self.base, &to) {
            return Ok(to);
        }
        Err(failed(format!("the registry redirects to {}", self.describe_other_site(&to))))
    }

    /// Authenticates as the registry requires. Returns whether there is anything to do.
    async fn authorize(&mut self, answer: &Response) -> Result<bool, ArtifactError> {
        if self.authorization.is_some() {
            return Ok(false);
        }
        let headers =
            answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let authorization = match (challenge::parse(headers), &self.credentials) {
            (Some(AuthChallenge::Basic), RegistryAuth::Basic(user, password)) => basic(user, password)?,
            (Some(AuthChallenge::Bearer { realm, service }), _) => {
                self.token(&realm, service.as_deref()).await?
            }
            _ => return Ok(false),
        };
        self.authorization = Some(authorization);
        Ok(true)
    }

    /// Gets a token for this repository only.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue, ArtifactError> {
        let answer = send(self.ask_for_token(realm, service)?).await?;
        if !answer.status().is_success() {
            return Err(failed(format!("no token: {}", refusal(answer).await)));
        }
        let answer =
            body(answer, MAX_TOKEN).await.map_err(|why| why.map_text(|why| format!("no token: {why}")))?;
        token_in(&answer)
    }

    /// A request for a token, with the credentials.
    pub(super) fn ask_for_token(
        &self,
        realm: &str,
        service: Option<&str>,
    ) -> Result<RequestBuilder, ArtifactError> {
        let realm: Url =
            realm.parse().map_err(|_| failed("the registry's tokens come from what is no URL"))?;
        if !self.config.allows(&self.base, &realm) {
            let site = self.describe_other_site(&realm);
            return Err(failed(format!("the registry's tokens come from {site}")));
        }
        let scope = format!("repository:{}:{}", self.repository, self.actions);
        let mut request = self.client.get(realm).query(&[("scope", &*scope)]);
        if let Some(service) = service {
            request = request.query(&[("service", service)]);
        }
        if let RegistryAuth::Basic(user, password) = &self.credentials {
            request = request.header(AUTHORIZATION, basic(user, password)?);
        }
        Ok(request)
    }

    fn describe_other_site(&self, place: &Url) -> String {
        let host = place.host_str().unwrap_or_default();
        let site = place.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        format!(
            "another site, {}://{site}, which got nothing; if it belongs to the registry, list it: `[policies.registry] trusted_hosts = [\"{site}\"]`",
            place.scheme()
        )
    }
}

#[derive(serde::Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token of a response.
pub(super) fn token_in(answer: &[u8]) -> Result<HeaderValue, ArtifactError> {
    // The parser's own message could quote a secret.
    let answer: TokenResponse =
        serde_json::from_slice(answer).map_err(|_| failed("the answer with the token is not JSON"))?;
    let token = answer.token.or(answer.access_token).ok_or_else(|| failed("the answer has no token"))?;
    bearer(&token)
}

/// A fetch that failed. Another one may succeed.
pub(super) fn failed(why: impl Into<String>) -> ArtifactError {
    ArtifactError::Registry(why.into())
}

async fn send(request: RequestBuilder) -> Result<Response, ArtifactError> {
    request.send().await.map_err(|why| failed(causes(&why.without_url())))
}

/// A body of at most this many bytes.
async fn body(mut answer: Response, most: usize) -> Result<Vec<u8>, ArtifactError> {
    let too_large = || failed(format!("the answer has more than {most} bytes"));
    if answer.content_length().is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|why| failed(causes(&why.without_url())))? {
        if body.len() + chunk.len() > most {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The status of an error response and the beginning of its text.
pub(super) async fn refusal(mut answer: Response) -> String {
    let status = answer.status();
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR - text.len())]);
        if text.len() >= MAX_ERROR {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    format!("the registry answered {status}: {shown}")
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ArtifactError> {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {pair}"))
}

fn bearer(token: &str) -> Result<HeaderValue, ArtifactError> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Result<HeaderValue, ArtifactError> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| failed("the token cannot be sent: it is no header"))?;
    value.set_sensitive(true);
    Ok(value)
}
