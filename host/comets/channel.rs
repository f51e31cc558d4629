//! How calls are made: one tonic channel to one comet, requests that are sent as they are, and
//! replies that are not looked into.
//!
//! The channel connects on the first call and again by itself when the connection is gone;
//! the name is then looked up anew, so that a comet whose address changed behind its DNS name
//! is found (hyper-util's `HttpConnector` resolves on every connect). It uses no proxy,
//! whatever the environment says.
//!
//! What a comet answered and what kept it from answering are told apart here, where it is
//! known: a [`Failure::Answer`] is a gRPC status that came over the wire.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as _, Frame};
use tonic::Code;
use tonic::codegen::Service as _;
use tonic::transport::{Channel, Endpoint};

use super::access::{Gate, GatedConnector, Refused};
use super::wire::{Body, Payload, Request};
use crate::message::{CometAddr, MESSAGE_ID, MessageId};

/// A peer that vanished while nothing is called is noticed by TCP: a probe after this long
/// without traffic, then one after each interval, up to so many.
///
/// There are no HTTP/2 pings: gRPC servers on the C core and on Go allow one every five minutes,
/// and none without calls (`keepalive.md`, "Too many pings"); more end the connection with
/// whatever runs on it. While calls are under way their deadlines notice: see `comet`.
const TCP_KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE_PROBES: u32 = 3;
/// Windows are for what comets send, which are empty replies.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Replies are empty messages. This is what a comet may send without being refused.
const MAX_REPLY: usize = 64 * 1024;
/// How much of what a comet says is kept, in bytes as they travel.
const MAX_TEXT: usize = 1000;

/// Makes channels to one comet.
#[derive(Clone)]
pub(super) struct Dialer {
    endpoint: Endpoint,
    connector: GatedConnector,
}

impl Dialer {
    /// To where the gate lets it.
    ///
    /// # Errors
    /// When the address is none.
    pub(super) fn new(
        address: &CometAddr,
        connect_timeout: Duration,
        gate: Gate,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .user_agent(concat!("halley/", env!("CARGO_PKG_VERSION")))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let connector = GatedConnector::new(gate, |http| {
            http.set_connect_timeout(Some(connect_timeout));
            http.set_nodelay(true);
            http.set_keepalive(Some(TCP_KEEPALIVE_AFTER));
            http.set_keepalive_interval(Some(TCP_KEEPALIVE_EVERY));
            http.set_keepalive_retries(Some(TCP_KEEPALIVE_PROBES));
        });
        Ok(Self { endpoint, connector })
    }

    /// A new channel, which connects on its first call.
    pub(super) fn dial(&self) -> Client {
        Client(self.endpoint.connect_with_connector_lazy(self.connector.clone()))
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The comet answered with this status.
    Answer {
        /// Its code.
        code: Code,
        /// What it said.
        text: String,
    },
    /// Nobody answered, or nobody who speaks gRPC: why.
    NoAnswer(String),
    /// This process could not even ask: it is out of files or ports.
    OurFault(String),
    /// Its address may not be connected to: why.
    NotAllowed(String),
}

impl Failure {
    /// The failure in words.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Answer { code, text } => format!("{code:?}: {text}"),
            Self::NoAnswer(why) | Self::OurFault(why) | Self::NotAllowed(why) => why.clone(),
        }
    }
}

/// A channel to a comet. Clones share the connection.
#[derive(Clone)]
pub(super) struct Client(Channel);

impl Client {
    /// Makes one call. It has no deadline of its own.
    pub(super) async fn call(&mut self, call: Call) -> Result<(), Failure> {
        let Self(channel) = self;
        let no_answer = |error: tonic::transport::Error| not_answered(&error);
        std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(no_answer)?;
        let response = channel.call(call.0).await.map_err(no_answer)?;
        if response.status() != StatusCode::OK {
            // Something else than a comet: a proxy before one that is gone, for example.
            return Err(Failure::NoAnswer(format!("HTTP {}", response.status())));
        }
        let (head, body) = response.into_parts();
        match status(&head.headers) {
            Some(status) => status,
            None => ended(body).await,
        }
    }
}

/// A method's path.
type Path = http::uri::PathAndQuery;

/// A call that is ready to be sent.
pub(super) struct Call(http::Request<tonic::body::Body>);

impl Call {
    /// A request with the ids of its messages as metadata.
    pub(super) fn new<'a>(
        request: Request,
        messages: impl Iterator<Item = (&'a Payload, &'a MessageId)>,
    ) -> Self {
        let Request { path, body, .. } = request;
        let mut call = Self::to(path, body);
        for (payload, id) in messages {
            if let Some(value) = payload.metadata(id) {
                call.0.headers_mut().append(MESSAGE_ID, value);
            }
        }
        call
    }

    /// gRPC's health check of the whole server (`grpc/health/v1/health.proto`).
    pub(super) fn health() -> Self {
        Self::to(Path::from_static("/grpc.health.v1.Health/Check"), Body::empty())
    }

    fn to(path: Path, body: Body) -> Self {
        let mut call = http::Request::new(tonic::body::Body::new(Pieces { body, sent: 0 }));
        *call.method_mut() = http::Method::POST;
        *call.version_mut() = http::Version::HTTP_2;
        // The channel adds scheme and authority.
        *call.uri_mut() = path.into();
        let headers = call.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Self(call)
    }
}

/// A request's pieces, which are sent without being copied.
struct Pieces {
    body: Body,
    sent: usize,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let sent = self.sent;
        self.sent += 1;
        let piece = self.body.0.get_mut(sent).map(std::mem::take).filter(|piece| !piece.is_empty());
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    /// Known in time, so that the last piece ends the stream and no empty frame has to.
    fn is_end_stream(&self) -> bool {
        self.body.0.get(self.sent).is_none_or(Bytes::is_empty)
    }
}

/// Reads a reply to its end, which tells how the call ended.
async fn ended(mut body: tonic::body::Body) -> Result<(), Failure> {
    let mut length = 0;
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(not_answered(&error)),
            None => return Err(Failure::NoAnswer("a reply without a gRPC status".into())),
        };
        if let Some(data) = frame.data_ref() {
            length += data.len();
            if length > MAX_REPLY {
                return Err(Failure::NoAnswer(format!("a reply of more than {MAX_REPLY} bytes")));
            }
        }
        if let Some(status) = frame.trailers_ref().and_then(status) {
            return status;
        }
    }
}

/// The gRPC status in these headers or trailers. Read by hand: tonic's own reading takes it for
/// granted that a comet's `grpc-status-details-bin` is base64, and panics where it is not.
fn status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    if code == Code::Ok {
        return Some(Ok(()));
    }
    let text = headers.get("grpc-message").map(|text| percent_decoded(text.as_bytes()));
    Some(Err(Failure::Answer { code, text: printable(&text.unwrap_or_default()) }))
}

/// `grpc-message` is percent-encoded; what is no such encoding stands for itself.
fn percent_decoded(text: &[u8]) -> String {
    let text = &text[..text.len().min(MAX_TEXT)];
    let digit = |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn not_answered(error: &(dyn std::error::Error + 'static)) -> Failure {
    if let Some(refused) = causes(error).find_map(|cause| cause.downcast_ref::<Refused>()) {
        return Failure::NotAllowed(refused.to_string());
    }
    let text = describe(error);
    if is_our_fault(error) { Failure::OurFault(text) } else { Failure::NoAnswer(text) }
}

/// `EMFILE`, `ENFILE` and `EADDRNOTAVAIL` (out of local ports), as Linux numbers them.
const OUT_OF_FILES: [i32; 2] = [24, 23];
const OUT_OF_PORTS: i32 = 99;

/// Whether a call failed for want of something of this process. Looking up a name needs a file
/// as well, and does not say so when there is none: then opening another one tells.
fn is_our_fault(error: &(dyn std::error::Error + 'static)) -> bool {
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

/// An error with its root cause, which is the part that helps.
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

/// Others write these texts, and they end up in logs and headers.
fn printable(text: &str) -> String {
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
    fn what_this_process_lacks_is_not_the_comet_s_fault() {
        let failure = |code| not_answered(&std::io::Error::from_raw_os_error(code));
        for code in [23, 24, 99] {
            assert!(matches!(failure(code), Failure::OurFault(_)), "{:?}", failure(code));
        }
        assert!(matches!(failure(111), Failure::NoAnswer(why) if why.contains("refused")));
    }

    #[test]
    fn a_status_is_read_whatever_stands_beside_it() {
        let answer = |code, text: &str| Some(Err(Failure::Answer { code, text: text.into() }));
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
