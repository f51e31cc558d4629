//! A message's trace context as metadata of calls.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::message::{TRACEPARENT, TRACESTATE, TraceContext};

const PARENT: HeaderName = HeaderName::from_static(TRACEPARENT);
const STATE: HeaderName = HeaderName::from_static(TRACESTATE);

/// The trace context that a call carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TraceMetadata {
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

impl TraceMetadata {
    /// That of a message. It shares the bytes of the record.
    pub(super) fn of(context: TraceContext<'_>) -> Option<Self> {
        let value = |bytes: &bytes::Bytes| {
            let mut value = HeaderValue::from_maybe_shared(bytes.clone()).ok()?;
            // Keeps it out of HPACK's table: it differs in each call.
            value.set_sensitive(true);
            Some(value)
        };
        Some(Self { parent: value(context.parent())?, state: context.state().and_then(value) })
    }

    /// `traceparent`.
    pub(super) fn parent(&self) -> &str {
        self.parent.to_str().unwrap_or_default()
    }

    /// Adds it to a call's metadata.
    pub(super) fn insert_into(&self, headers: &mut HeaderMap) {
        headers.insert(PARENT, self.parent.clone());
        if let Some(state) = &self.state {
            headers.insert(STATE, state.clone());
        }
    }
}
