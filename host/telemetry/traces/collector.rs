//! The HTTP client that brings spans to the collector: the one that the rest of the gateway uses, with its
//! TLS.
//!
//! Every request has a deadline over all its attempts, replies are bounded, and redirects are not followed:
//! the collector's address is the operator's, and so are the headers that it gets.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use parking_lot::Mutex;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};

use super::config::Config;
use crate::backoff::Backoff;
use crate::reloaded::{InvalidContent, ReloadError, Reloaded, SourceFile};
use crate::telemetry::causes;

/// Maximum size of a reply in bytes; the reply of OTLP says little.
const MOST_REPLY: usize = 64 * 1024;
/// Waits between attempts: first and longest.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollectorError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its reply has more than {MOST_REPLY} bytes")]
    ReplyTooLarge,
    #[error("no success within {0:?}")]
    TimedOut(Duration),
}

impl CollectorError {
    /// Whether a retry may succeed: OTLP names these statuses.
    fn may_pass(&self) -> bool {
        match self {
            Self::Http(error) => !error.is_builder(),
            Self::Status(status) => matches!(status.as_u16(), 429 | 502..=504),
            Self::ReplyTooLarge | Self::TimedOut(_) => false,
        }
    }
}

/// What the last request came to, which the exporter does not say.
#[derive(Debug, Default)]
pub(super) struct LastReply {
    /// Why it failed.
    pub(super) failure: Option<String>,
    /// How many spans the collector refused, and why.
    pub(super) rejected: u64,
    pub(super) reason: String,
}

/// The client.
#[derive(Clone, derive_more::Debug)]
#[debug("CollectorClient within {timeout:?}")]
pub(super) struct CollectorClient {
    http: Client,
    headers: Option<Arc<Reloaded<HeaderMap>>>,
    timeout: Duration,
    pub(super) last: Arc<Mutex<LastReply>>,
}

impl CollectorClient {
    /// With the configured headers and timeout.
    ///
    /// # Errors
    /// If the headers cannot be read.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let headers = read_headers(config)?.map(Arc::new);
        let http = Client::builder().redirect(redirect::Policy::none()).build()?;
        Ok(Self { http, headers, timeout: config.timeout, last: Arc::default() })
    }

    /// Sends a request without spans.
    ///
    /// # Errors
    /// Why the collector does not take it.
    pub(super) async fn probe(&self, endpoint: &reqwest::Url) -> anyhow::Result<()> {
        let request = Request::post(endpoint.as_str()).header(CONTENT_TYPE, "application/x-protobuf");
        let sent = self.send_bytes(request.body(Bytes::new())?).await;
        let why = |error: HttpError| self.last.lock().failure.take().unwrap_or_else(|| error.to_string());
        sent.map(drop).map_err(|error| anyhow::anyhow!("{}; check [traces]", why(error)))
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, CollectorError> {
        let (parts, body) = request.into_parts();
        let headers = match &self.headers {
            Some(headers) => headers.current().await,
            None => HeaderMap::new(),
        };
        let mut backoff = BACKOFF;
        loop {
            let request = self.http.post(parts.uri.to_string()).headers(parts.headers.clone());
            let (error, wait) = match request.headers(headers.clone()).body(body.clone()).send().await {
                Ok(reply) if reply.status().is_success() => return read(reply).await,
                Ok(reply) => {
                    let asked = reply.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                    let seconds = asked.and_then(|text| text.parse().ok()).map(Duration::from_secs);
                    (CollectorError::Status(reply.status()), seconds)
                }
                Err(error) => (CollectorError::Http(error.without_url()), None),
            };
            self.last.lock().failure = Some(causes(&error));
            if !error.may_pass() {
                return Err(error);
            }
            let own = backoff.next_wait(fastrand::f64());
            tokio::time::sleep(wait.unwrap_or_default().max(own)).await;
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        *self.last.lock() = LastReply::default();
        let sent = tokio::time::timeout(self.timeout, self.send(request)).await;
        let mut last = self.last.lock();
        match sent.unwrap_or(Err(CollectorError::TimedOut(self.timeout))) {
            Ok(reply) => {
                let partial = ExportReply::decode(reply.body().clone()).ok().and_then(|r| r.partial_success);
                *last = LastReply::default();
                if let Some(PartialSuccess { rejected, reason }) = partial {
                    (last.rejected, last.reason) = (u64::try_from(rejected).unwrap_or_default(), reason);
                }
                Ok(reply)
            }
            Err(error) => {
                let before = last.failure.take().filter(|_| matches!(error, CollectorError::TimedOut(_)));
                last.failure = Some(match before {
                    Some(before) => format!("{error}: {before}"),
                    None => causes(&error),
                });
                Err(error.into())
            }
        }
    }
}

/// What `headers_file` says.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read_headers(config: &Config) -> Result<Option<Reloaded<HeaderMap>>, ReloadError> {
    let read = |path: &std::path::PathBuf| {
        let files = vec![SourceFile { path: path.clone(), is_secret: true }];
        Reloaded::load_now("traces.headers_file", files, |contents| headers(&contents[0]))
    };
    config.headers_file.as_ref().map(read).transpose()
}

async fn read(mut reply: reqwest::Response) -> Result<Response<Bytes>, CollectorError> {
    let mut body = Vec::new();
    while let Some(chunk) = reply.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > MOST_REPLY {
            return Err(CollectorError::ReplyTooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response::new(body.into()))
}

/// Why a line of the headers is none.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is not `Name: value`")]
struct InvalidHeader {
    line: usize,
}

/// `Name: value` on each line; empty lines and those that begin with `#` are skipped.
fn headers(text: &str) -> Result<HeaderMap, InvalidContent> {
    let mut headers = HeaderMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let name = name.trim().parse::<HeaderName>().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, mut value) = parsed.ok_or(InvalidHeader { line: at + 1 })?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// `ExportTraceServiceResponse` of `opentelemetry/proto/collector/trace/v1/trace_service.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct ExportReply {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_of_names_and_values() {
        let read = headers("# of the collector\n\nAuthorization: Bearer a:b\r\nx-tenant:push\n").unwrap();
        assert_eq!(read["authorization"], "Bearer a:b");
        assert_eq!((&read["x-tenant"], read.len()), (&HeaderValue::from_static("push"), 2));
        for (wrong, line) in [("secret", 1), ("a: b\nc d: e", 2), ("a: \u{7f}", 1)] {
            let why = headers(wrong).unwrap_err().to_string();
            assert_eq!(why, format!("line {line} is not `Name: value`"), "no secret is shown");
        }
    }

    #[test]
    fn only_what_may_pass_is_retried() {
        let may_pass = |status| CollectorError::Status(StatusCode::from_u16(status).unwrap()).may_pass();
        assert_eq!([429, 502, 503, 504].map(may_pass), [true; 4]);
        assert_eq!([301, 400, 401, 404, 413, 500].map(may_pass), [false; 6]);
    }
}
