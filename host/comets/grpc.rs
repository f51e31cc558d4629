//! gRPC on HTTP/2: the head of a call, its status, and why a call failed.
//!
//! Parsed here and not by tonic, which panics if a comet's `grpc-status-details-bin` is not base64.

use std::borrow::Cow;
use std::fmt::Write as _;

use h2::RecvStream;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use percent_encoding::percent_decode;
use tonic::Code;

use super::access::AddressRefused;

/// Replies are empty messages. A larger reply than this is an error.
const MAX_REPLY: usize = 64 * 1024;
/// How much of a comet's error message is kept, in bytes on the wire.
const MAX_TEXT: usize = 1000;
const STREAM_NOT_SERVED: &str = "the comet does not serve halley.comet.v1.Delivery, and [comets] delivery is \"stream\"; update the comet, or set delivery = \"auto\"";
const AGENT: HeaderValue = HeaderValue::from_static(concat!("halley/", env!("CARGO_PKG_VERSION")));

/// The head of a call.
pub(super) fn request(target: &Target, path: PathAndQuery, headers: HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = target.uri(path);
    *request.headers_mut() = headers;
    request
}

/// The headers of every call.
pub(super) fn headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(USER_AGENT, AGENT);
    headers
}

/// Where calls go.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `https` for a comet that speaks TLS.
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
}

impl Target {
    pub(super) fn uri(&self, path: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        (parts.scheme, parts.authority, parts.path_and_query) =
            (Some(self.scheme.clone()), Some(self.authority.clone()), Some(path));
        // Cannot fail: scheme, authority and path are all set.
        Uri::from_parts(parts).unwrap_or_default()
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallFailure {
    /// The comet answered with this status.
    Status {
        /// Its code.
        code: Code,
        /// Its message.
        text: String,
    },
    /// No gRPC status was received: why.
    NoAnswer(String),
    /// This process could not make the call: it is out of files or ports.
    LocalFailure(String),
    /// The address may not be connected to: why.
    Forbidden(String),
    /// The call was not made: the comet offers a stream.
    Streams,
    /// The call was not made: the comet serves no stream, and calls are not wanted.
    StreamNotServed,
}

impl CallFailure {
    /// The failure as text.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Status { code, text } => format!("{code:?}: {text}"),
            Self::NoAnswer(why) | Self::LocalFailure(why) | Self::Forbidden(why) => why.clone(),
            Self::Streams => "the comet takes messages by stream".to_owned(),
            Self::StreamNotServed => STREAM_NOT_SERVED.to_owned(),
        }
    }
}

/// Reads a reply to its end and returns the status from the trailers.
pub(super) async fn read_status(mut body: RecvStream) -> Result<(), CallFailure> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| classify_error(&error))?;
        length += data.len();
        if length > MAX_REPLY {
            return Err(CallFailure::NoAnswer(format!("a reply of more than {MAX_REPLY} bytes")));
        }
        // Fails only for more than was received.
        drop(body.flow_control().release_capacity(data.len()));
    }
    let trailers = body.trailers().await.map_err(|error| classify_error(&error))?;
    let no_status = || Err(CallFailure::NoAnswer("a reply without a gRPC status".into()));
    trailers.as_ref().and_then(status).unwrap_or_else(no_status)
}

/// The gRPC status in these headers or trailers. Not parsed by tonic, which panics if a comet's
/// `grpc-status-details-bin` is not base64.
pub(super) fn status(headers: &HeaderMap) -> Option<Result<(), CallFailure>> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    if code == Code::Ok {
        return Some(Ok(()));
    }
    let text = headers.get("grpc-message").map(|text| percent_decoded(text.as_bytes()));
    Some(Err(CallFailure::Status { code, text: printable(&text.unwrap_or_default()) }))
}

/// Decodes the percent-encoded `grpc-message`; invalid sequences are kept as they are.
fn percent_decoded(text: &[u8]) -> Cow<'_, str> {
    percent_decode(&text[..text.len().min(MAX_TEXT)]).decode_utf8_lossy()
}

pub(super) fn classify_error(error: &(dyn std::error::Error + 'static)) -> CallFailure {
    if let Some(refused) = causes(error).find_map(|cause| cause.downcast_ref::<AddressRefused>()) {
        return CallFailure::Forbidden(refused.to_string());
    }
    let text = describe(error);
    if is_local_failure(error) { CallFailure::LocalFailure(text) } else { CallFailure::NoAnswer(text) }
}

/// `EMFILE`, `ENFILE` and `EADDRNOTAVAIL` (out of local ports), as Linux numbers them.
const OUT_OF_FILES: [i32; 2] = [24, 23];
const OUT_OF_PORTS: i32 = 99;

/// Whether a call failed because this process is out of files or ports. A name look-up needs a file
/// too, and hides that error: then this tries to open a file.
fn is_local_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    let codes = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    let codes: Vec<i32> = codes.filter_map(std::io::Error::raw_os_error).collect();
    let is_ours = |code: &i32| OUT_OF_FILES.contains(code) || *code == OUT_OF_PORTS;
    let is_lookup = causes(error).any(|cause| cause.to_string().contains("dns error"));
    codes.iter().any(is_ours) || is_lookup && !has_a_file_left()
}

fn has_a_file_left() -> bool {
    crate::files::exhausted().is_none_or(|code| !OUT_OF_FILES.contains(&code))
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An error with its root cause.
fn describe(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let (text, cause) = (error.to_string(), root.to_string());
    let mut words = printable(&text);
    if !text.contains(&cause) {
        let _ = write!(words, ": {}", printable(&cause));
    }
    words
}

/// Cleans text from remote peers, which ends up in logs and headers.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(status: &'static str, message: &'static [u8]) -> HeaderMap {
        let message = HeaderValue::from_bytes(message).expect("a header");
        let details = HeaderValue::from_static("not base64!");
        [
            ("grpc-status", HeaderValue::from_static(status)),
            ("grpc-message", message),
            ("grpc-status-details-bin", details),
        ]
        .into_iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value))
        .collect()
    }

    #[test]
    fn a_local_shortage_is_not_the_comet_s_failure() {
        let failure = |code| classify_error(&std::io::Error::from_raw_os_error(code));
        for code in [23, 24, 99] {
            assert!(matches!(failure(code), CallFailure::LocalFailure(_)), "{:?}", failure(code));
        }
        assert!(matches!(failure(111), CallFailure::NoAnswer(why) if why.contains("refused")));
    }

    #[test]
    fn a_status_is_read_from_any_headers() {
        let answer = |code, text: &str| Some(Err(CallFailure::Status { code, text: text.into() }));
        assert_eq!(status(&HeaderMap::new()), None);
        assert_eq!(status(&headers("0", b"")), Some(Ok(())));
        assert_eq!(
            status(&headers("2", b"signal%20channel full")),
            answer(Code::Unknown, "signal channel full")
        );
        assert_eq!(status(&headers("14", b"100% \xff%0a%")), answer(Code::Unavailable, "100% \u{fffd} %"));
        assert_eq!(status(&headers("seventeen", b"")), answer(Code::Unknown, ""));
    }

    proptest! {
        #[test]
        fn any_text_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..50)) {
            percent_decoded(&text);
        }
    }
}
