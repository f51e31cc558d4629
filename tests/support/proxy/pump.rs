//! One connection through the proxy: two directions, and the current fault.
//!
//! Each direction buffers at most 16 KiB and then stops reading, so that the sender notices a slow or
//! unresponsive network. The end of a peer ends both sides: a proper end is passed on as one, an
//! error as a reset.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Fault, LONGEST, ProxyState};

/// Buffer of one direction.
const HELD: usize = 16 * 1024;
/// Bytes per read, a part of the buffer.
const AT_ONCE: usize = 4 * 1024;
/// Timeout of connecting to the target.
const CONNECT: Duration = Duration::from_secs(10);

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionEnd {
    /// Both sides have finished.
    Closed,
    /// Has to be reset.
    Reset,
}

/// Carries one client's connection to its end.
pub(super) async fn connection(
    mut client: TcpStream,
    target: String,
    dice: fastrand::Rng,
    mut states: watch::Receiver<ProxyState>,
) {
    let order = *states.borrow_and_update();
    match order.fault {
        Some(Fault::Refuse) => return reset(&client),
        Some(Fault::BlackHole) => {
            until_cut(order.cuts, &mut states).await;
            return reset(&client);
        }
        _ => {}
    }
    // Not abandoned for a reset, because the target could not be reset then: `carry` does it.
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(target)).await;
    let connected = connected.ok().and_then(Result::ok);
    let Some(mut server) = connected else { return reset(&client) };
    if carry(&mut client, &mut server, dice, order, states).await == ConnectionEnd::Reset {
        reset(&client);
        reset(&server);
    }
}

/// Makes the socket close with a reset. Fails if the other side was faster.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Returns when all connections are reset, also at the proxy's end.
async fn until_cut(cuts: u64, states: &mut watch::Receiver<ProxyState>) {
    let _ = states.wait_for(|order| order.cuts != cuts).await;
}

async fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut dice: fastrand::Rng,
    mut order: ProxyState,
    mut states: watch::Receiver<ProxyState>,
) -> ConnectionEnd {
    // Small pieces have to stay small.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_says, client_hears) = client.split();
    let (server_says, server_hears) = server.split();
    let mut there = Direction::new(client_says, server_hears, dice.fork());
    let mut back = Direction::new(server_says, client_hears, dice.fork());
    let mut allowance = allowance(order.fault, &mut dice);
    while !(there.done && back.done) {
        let moved = tokio::select! {
            // A new state applies before anything else happens.
            biased;
            changed = states.changed() => {
                let before = order;
                order = *states.borrow_and_update();
                if changed.is_err() || order.cuts != before.cuts {
                    return ConnectionEnd::Reset;
                }
                if order.fault != before.fault {
                    allowance = self::allowance(order.fault, &mut dice);
                    there.hurry();
                    back.hurry();
                }
                Ok(0)
            }
            moved = step(&mut there, &mut back, order.fault, allowance) => moved,
        };
        let Ok(bytes) = moved else { return ConnectionEnd::Reset };
        allowance = allowance.saturating_sub(bytes);
        if allowance == 0 {
            return ConnectionEnd::Reset;
        }
    }
    ConnectionEnd::Closed
}

/// One step of a direction that is ready and allowed.
async fn step(
    there: &mut Direction<'_>,
    back: &mut Direction<'_>,
    fault: Option<Fault>,
    allowance: usize,
) -> io::Result<usize> {
    let passes = fault != Some(Fault::BlackHole);
    let answers = passes && fault != Some(Fault::HalfOpen);
    tokio::select! {
        moved = there.step(fault, allowance), if passes && !there.done => moved,
        moved = back.step(fault, allowance), if answers && !back.done => moved,
        else => std::future::pending().await,
    }
}

/// How many bytes may pass before the connection is cut.
fn allowance(fault: Option<Fault>, dice: &mut fastrand::Rng) -> usize {
    if fault == Some(Fault::CutMidFrame) { dice.usize(1..=LONGEST) } else { usize::MAX }
}

/// One direction.
struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    dice: fastrand::Rng,
    /// Data read and not yet written.
    held: BytesMut,
    /// When the pieces of `held` may be written, and their lengths.
    pieces: VecDeque<(Instant, usize)>,
    /// When the bandwidth allows the next write.
    free: Instant,
    /// The sender has finished.
    ended: bool,
    /// The receiver has been told.
    done: bool,
}

impl<'a> Direction<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>, dice: fastrand::Rng) -> Self {
        let (held, pieces) = (BytesMut::with_capacity(HELD), VecDeque::new());
        Self { from, to, dice, held, pieces, free: Instant::now(), ended: false, done: false }
    }

    /// Reads a piece, writes at most `most` bytes, or passes the end on. Returns the number of
    /// written bytes. Cancellation while waiting has no effect.
    async fn step(&mut self, fault: Option<Fault>, most: usize) -> io::Result<usize> {
        let mut space = [0; AT_ONCE];
        let room = AT_ONCE.min(HELD - self.held.len());
        let most = most.min(largest_write(fault));
        tokio::select! {
            // Due data first: it frees the buffer.
            biased;
            written = write_first(&mut self.to, &self.held, self.pieces.front(), self.free, most),
                if !self.pieces.is_empty() => self.was_written(written?, fault),
            read = self.from.read(&mut space[..room]), if !self.ended && room > 0 => {
                self.was_read(&space[..read?], fault);
                Ok(0)
            }
            else => {
                self.to.shutdown().await?;
                self.done = true;
                Ok(0)
            }
        }
    }

    fn was_read(&mut self, piece: &[u8], fault: Option<Fault>) {
        if piece.is_empty() {
            self.ended = true;
            return;
        }
        let mut due = Instant::now();
        if let Some(Fault::Latency { at_least, at_most }) = fault {
            due += at_least + at_most.saturating_sub(at_least).mul_f64(self.dice.f64());
        }
        self.held.extend_from_slice(piece);
        self.pieces.push_back((due, piece.len()));
    }

    fn was_written(&mut self, bytes: usize, fault: Option<Fault>) -> io::Result<usize> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held.advance(bytes);
        if let Some((_, length)) = self.pieces.front_mut() {
            *length -= bytes;
        }
        self.pieces.pop_front_if(|(_, length)| *length == 0);
        if let Some(Fault::Bandwidth { bytes_per_second }) = fault {
            let time = Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_second.max(1)));
            self.free = self.free.max(Instant::now()) + time;
        }
        Ok(bytes)
    }

    /// The fault has changed: data delayed by the previous one goes now.
    fn hurry(&mut self) {
        let now = Instant::now();
        self.free = now;
        for (due, _) in &mut self.pieces {
            *due = now;
        }
    }
}

/// Writes the allowed part of the first piece, once it is due.
async fn write_first(
    to: &mut WriteHalf<'_>,
    held: &BytesMut,
    first: Option<&(Instant, usize)>,
    free: Instant,
    most: usize,
) -> io::Result<usize> {
    let Some((due, length)) = first else { return Ok(0) };
    tokio::time::sleep_until(free.max(*due)).await;
    to.write(&held[..most.min(*length)]).await
}

/// Limited bandwidth writes in small amounts, each a fiftieth of a second's worth.
fn largest_write(fault: Option<Fault>) -> usize {
    match fault {
        Some(Fault::Bandwidth { bytes_per_second }) => (bytes_per_second as usize / 50).max(1),
        _ => usize::MAX,
    }
}
