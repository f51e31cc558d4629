//! A collector of traces for one story: an OTLP/HTTP endpoint that decodes what it gets.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::task::JoinSet;

use super::{PATIENCE, eventually};

/// How the collector answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reply {
    /// It takes the spans.
    #[default]
    Takes,
    /// It takes none of the spans.
    Rejects,
    /// This status.
    Fails(u16),
    /// Never.
    Hangs,
    /// With a body of this size.
    Talks(usize),
}

#[derive(Default)]
struct Received {
    spans: Mutex<Vec<Span>>,
    resource: Mutex<Vec<KeyValue>>,
    headers: Mutex<HeaderMap>,
    reply: Mutex<Reply>,
    requests: Mutex<usize>,
}

/// A running collector.
pub struct Collector {
    url: String,
    received: Arc<Received>,
    /// Ends when it is dropped.
    _server: JoinSet<()>,
}

impl Collector {
    /// Starts one on a free port.
    pub async fn start() -> Self {
        let received = Arc::<Received>::default();
        let app = axum::Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let serve = async { axum::serve(listener, app).await.expect("it serves until it is dropped") };
        let mut server = JoinSet::new();
        server.spawn(serve);
        Self { url, received, _server: server }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Changes how it answers.
    pub fn reply(&self, reply: Reply) {
        *self.received.reply.lock() = reply;
    }

    /// How many requests it got.
    pub fn requests(&self) -> usize {
        *self.received.requests.lock()
    }

    /// The spans that it took.
    pub fn spans(&self) -> Vec<Span> {
        self.received.spans.lock().clone()
    }

    /// What the last spans were of.
    pub fn resource(&self, key: &str) -> Option<String> {
        attribute(&self.received.resource.lock(), key)
    }

    /// A header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.received.headers.lock();
        headers.get(name).map(|value| value.to_str().expect("text").to_owned())
    }

    /// Waits for this many spans `process`, and returns all spans.
    pub async fn wait_for_messages(&self, wanted: usize) -> Vec<Span> {
        let is_root = |span: &&Span| span.name.starts_with("process ");
        eventually(format!("{wanted} traced messages"), PATIENCE, async || {
            let spans = self.spans();
            (spans.iter().filter(is_root).count() >= wanted).then_some(spans)
        })
        .await
    }
}

/// The value of an attribute as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

async fn take(
    State(received): State<Arc<Received>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    let reply = received.reply.lock().clone();
    *received.requests.lock() += 1;
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let count: usize =
        request.resource_spans.iter().flat_map(|of| &of.scope_spans).map(|of| of.spans.len()).sum();
    match reply {
        Reply::Takes => {}
        Reply::Rejects => {
            let partial = ExportTracePartialSuccess {
                rejected_spans: count as i64,
                error_message: "the story wants none".to_owned(),
            };
            let reply = ExportTraceServiceResponse { partial_success: Some(partial) };
            return (StatusCode::OK, reply.encode_to_vec());
        }
        Reply::Fails(status) => {
            return (StatusCode::from_u16(status).expect("a status"), b"no".to_vec());
        }
        Reply::Hangs => std::future::pending().await,
        Reply::Talks(size) => return (StatusCode::OK, vec![0; size]),
    }
    *received.headers.lock() = headers;
    for of_resource in request.resource_spans {
        *received.resource.lock() = of_resource.resource.unwrap_or_default().attributes;
        for of_scope in of_resource.scope_spans {
            received.spans.lock().extend(of_scope.spans);
        }
    }
    (StatusCode::OK, Vec::new())
}
