//! Asks a comet for a stream, and carries the frames of an open one, on HTTP/2 as the `h2` crate speaks
//! it.
//!
//! A comet that does not serve streams answers `UNIMPLEMENTED` at once. Any other answer than Welcome,
//! and silence, declines the stream. A connection that cannot be made or breaks is not an answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::StatusCode;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use tonic::Code;

use super::frame_reader::FrameReader;
use super::frames;
use crate::comets::body::Body;
use crate::comets::grpc::{self, CallFailure, Target};
use crate::comets::metrics::StreamFailure;
use crate::comets::proto::delivery::{FromComet, Hello, Welcome, from_comet};

/// The version of the protocol.
pub(in crate::comets) const VERSION: u32 = 1;
const PATH: &str = "/halley.comet.v1.Delivery/Deliver";

/// A comet's answer to Hello.
#[derive(Clone)]
pub(in crate::comets) enum Offered {
    /// Welcome: a stream, for the first who takes it.
    Stream(Arc<Mutex<Option<Box<OpenStream>>>>),
    /// It does not serve streams.
    NotServed,
    /// Anything else, or silence.
    Declined(Declined),
}

/// Why a comet declined a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::comets) struct Declined {
    pub(in crate::comets) reason: StreamFailure,
    pub(in crate::comets) why: String,
}

/// A stream whose comet has sent Welcome.
pub(in crate::comets) struct OpenStream {
    pub(in crate::comets) welcome: Welcome,
    /// Notices that the server ends its connection.
    sender: SendRequest<Body>,
    send: SendStream<Body>,
    received: RecvStream,
    reader: FrameReader,
    /// Frames that came together with Welcome.
    early: Vec<FromComet>,
    /// What is written once HTTP/2's flow control allows it.
    unwritten: VecDeque<Bytes>,
    is_ending: bool,
    /// How it ended, until that is reported.
    ended: Option<StreamEnd>,
}

/// How a stream ended.
#[derive(Debug)]
pub(in crate::comets) enum StreamEnd {
    /// The comet's handler ended it, with this status.
    Status(Result<(), CallFailure>),
    /// The comet broke the protocol: how.
    Violation(String),
    /// The connection, or the stream on it, broke.
    Lost(CallFailure),
}

/// What is new on a stream.
pub(in crate::comets) enum StreamNews {
    /// Frames have arrived, or more can be written.
    Progress,
    /// The server ends its connection: no new messages.
    Ending,
    Ended(StreamEnd),
}

/// Asks for a stream. `wait` bounds the time to Welcome once the connection is made.
///
/// # Errors
/// If there is no connection.
pub(in crate::comets) async fn open(
    sender: SendRequest<Body>,
    target: &Target,
    wait: Duration,
) -> Result<Offered, CallFailure> {
    let failed = |error: h2::Error| grpc::classify_error(&error);
    let mut sender = sender.ready().await.map_err(failed)?;
    let request = grpc::request(target, PathAndQuery::from_static(PATH), grpc::headers());
    let (response, mut send) = sender.send_request(request, false).map_err(failed)?;
    send.send_data(frames::hello(hello()).into(), false).map_err(failed)?;
    let answer = async {
        let response = match response.await {
            Ok(response) => response,
            Err(error) => return Answer::of_error(&error),
        };
        let (head, received) = response.into_parts();
        if head.status == StatusCode::NOT_FOUND {
            // A proxy that knows only the dialect's own paths.
            return Answer::NotServed;
        }
        if head.status != StatusCode::OK {
            return Answer::declined(StreamFailure::Error, format!("HTTP {}", head.status));
        }
        match grpc::status(&head.headers) {
            Some(status) => Answer::of_status(status),
            None => read_welcome(received).await,
        }
    };
    let answer = tokio::time::timeout(wait, answer).await;
    let silence = |_| Answer::declined(StreamFailure::Silent, format!("no Welcome within {wait:?}"));
    Ok(match answer.unwrap_or_else(silence) {
        Answer::Welcome { welcome, received, reader, early } => {
            let unwritten = VecDeque::new();
            let stream = OpenStream {
                welcome,
                sender,
                send,
                received,
                reader,
                early,
                unwritten,
                is_ending: false,
                ended: None,
            };
            Offered::Stream(Arc::new(Mutex::new(Some(Box::new(stream)))))
        }
        Answer::NotServed => Offered::NotServed,
        Answer::Declined(declined) => Offered::Declined(declined),
        Answer::Failed(failure) => return Err(failure),
    })
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        gateway: format!("halley {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id()),
        session: format!("{:032x}", fastrand::u128(..)),
        stream: 0,
        streams: 1,
        features: Vec::new(),
    }
}

/// The answer to Hello, before it is a stream.
enum Answer {
    Welcome { welcome: Welcome, received: RecvStream, reader: FrameReader, early: Vec<FromComet> },
    NotServed,
    Declined(Declined),
    Failed(CallFailure),
}

impl Answer {
    fn declined(reason: StreamFailure, why: impl Into<String>) -> Self {
        Self::Declined(Declined { reason, why: why.into() })
    }

    fn of_status(status: Result<(), CallFailure>) -> Self {
        match status {
            Err(CallFailure::Status { code: Code::Unimplemented, .. }) => Self::NotServed,
            Err(failure) => Self::declined(StreamFailure::Error, failure.text()),
            Ok(()) => Self::declined(StreamFailure::Error, "it ended the stream without Welcome"),
        }
    }

    fn of_error(error: &h2::Error) -> Self {
        if error.is_reset() {
            Self::declined(StreamFailure::Error, error.to_string())
        } else {
            Self::Failed(grpc::classify_error(error))
        }
    }
}

/// Reads until the first frame, which has to be Welcome.
async fn read_welcome(mut received: RecvStream) -> Answer {
    let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
    while frames.is_empty() {
        let data = match received.data().await {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Answer::of_error(&error),
            None => {
                return match received.trailers().await {
                    Ok(trailers) => {
                        let status = trailers.as_ref().and_then(grpc::status);
                        Answer::of_status(status.unwrap_or(Ok(())))
                    }
                    Err(error) => Answer::of_error(&error),
                };
            }
        };
        // Fails only for more than was received.
        drop(received.flow_control().release_capacity(data.len()));
        if let Err(error) = reader.read(data, &mut frames) {
            return Answer::declined(StreamFailure::Protocol, error.to_string());
        }
    }
    let early = frames.split_off(1);
    match frames.pop().and_then(|frame| frame.frame) {
        Some(from_comet::Frame::Welcome(welcome)) if welcome.version == VERSION => {
            Answer::Welcome { welcome, received, reader, early }
        }
        Some(from_comet::Frame::Welcome(Welcome { version, .. })) => Answer::declined(
            StreamFailure::Protocol,
            format!("it welcomes version {version}, which the gateway does not speak"),
        ),
        _ => Answer::declined(StreamFailure::Protocol, "its first frame is not Welcome"),
    }
}

impl OpenStream {
    /// Writes a piece of a frame, as soon as HTTP/2's flow control allows it.
    pub(in crate::comets) fn write(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.unwritten.push_back(piece);
        }
    }

    /// Whether everything is written, so that more should be.
    pub(in crate::comets) fn is_writable(&self) -> bool {
        self.unwritten.is_empty()
    }

    /// Ends the gateway's side.
    pub(in crate::comets) fn end(&mut self) {
        // It fails if the stream has ended.
        drop(self.send.send_data(Body::default(), true));
    }

    /// Writes and reads what is possible.
    pub(in crate::comets) fn poll(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<FromComet>,
    ) -> Poll<StreamNews> {
        let was_writable = self.is_writable();
        frames.append(&mut self.early);
        if self.ended.is_none() {
            let written = self.poll_write(context);
            if let Poll::Ready(end) = self.poll_read(context, frames) {
                self.ended = Some(end);
            } else if let Err(error) = written {
                self.ended = Some(StreamEnd::Lost(grpc::classify_error(&error)));
            }
        }
        // Frames that came before the end count.
        if !frames.is_empty() {
            return Poll::Ready(StreamNews::Progress);
        }
        if let Some(end) = self.ended.take() {
            return Poll::Ready(StreamNews::Ended(end));
        }
        if !self.is_ending && matches!(self.sender.poll_ready(context), Poll::Ready(Err(_))) {
            self.is_ending = true;
            return Poll::Ready(StreamNews::Ending);
        }
        if self.is_writable() && !was_writable { Poll::Ready(StreamNews::Progress) } else { Poll::Pending }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<(), h2::Error> {
        while let Some(piece) = self.unwritten.front_mut() {
            let rest: usize = piece.len();
            self.send.reserve_capacity(rest);
            let capacity = self.send.capacity();
            if capacity == 0 {
                match self.send.poll_capacity(context) {
                    Poll::Ready(Some(capacity)) => drop(capacity?),
                    // The stream has ended; reading tells how.
                    Poll::Ready(None) | Poll::Pending => return Ok(()),
                }
                if self.send.capacity() == 0 {
                    continue;
                }
            }
            let part = piece.split_to(rest.min(self.send.capacity()));
            if piece.is_empty() {
                self.unwritten.pop_front();
            }
            self.send.send_data(part.into(), false)?;
        }
        Ok(())
    }

    fn poll_read(&mut self, context: &mut Context<'_>, frames: &mut Vec<FromComet>) -> Poll<StreamEnd> {
        loop {
            let data = match self.received.poll_data(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(StreamEnd::Lost(grpc::classify_error(&error)));
                }
                Poll::Ready(None) => break,
            };
            // Fails only for more than was received.
            drop(self.received.flow_control().release_capacity(data.len()));
            if let Err(error) = self.reader.read(data, frames) {
                return Poll::Ready(StreamEnd::Violation(error.to_string()));
            }
        }
        let Poll::Ready(trailers) = self.received.poll_trailers(context) else { return Poll::Pending };
        Poll::Ready(match trailers {
            Ok(trailers) => StreamEnd::Status(trailers.as_ref().and_then(grpc::status).unwrap_or(Ok(()))),
            Err(error) => StreamEnd::Lost(grpc::classify_error(&error)),
        })
    }
}
