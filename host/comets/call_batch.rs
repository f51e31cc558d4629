//! Queues the calls of many messages together.
//!
//! A comet is looked up once for all its calls, and its task gets many calls at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;

use super::comet::Comet;
use super::queued_call::QueuedCall;
use super::{CallRequest, Fleet};
use crate::message::CometAddr;

/// How many calls a comet gets at a time, so that it starts while the next ones are prepared.
const HAND_OVER: usize = 64;

/// Calls that are about to be handed over to their comets. Dropping it hands them over. It keeps its
/// comets in existence, so it must not be kept while waiting: see [`CallBatch::flush`].
pub struct CallBatch<'a> {
    fleet: &'a Fleet,
    comets: HashMap<CometAddr, Outgoing, RandomState>,
    now: Instant,
}

struct Outgoing {
    comet: Arc<Comet>,
    calls: Vec<QueuedCall>,
}

impl<'a> CallBatch<'a> {
    /// No calls yet.
    pub fn new(fleet: &'a Fleet) -> Self {
        Self { fleet, comets: HashMap::default(), now: Instant::now() }
    }

    /// The time at which its calls count as queued.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Like [`Fleet::try_send`], but the call may be handed over later.
    ///
    /// # Errors
    /// With the request if it is worth waiting for room in its comet's queue. Then everything before it
    /// has been handed over.
    pub fn try_send(&mut self, request: CallRequest) -> Result<(), CallRequest> {
        if !self.comets.contains_key(&request.comet) {
            let Some(comet) = self.fleet.usable(&request) else {
                return self.fleet.try_send(request);
            };
            self.comets.insert(request.comet.clone(), Outgoing { comet, calls: Vec::new() });
        }
        let Some(Outgoing { comet, calls }) = self.comets.get_mut(&request.comet) else {
            return self.fleet.try_send(request);
        };
        if !comet.accepts(&request) {
            self.flush();
            return self.fleet.try_send(request);
        }
        match comet.take(request, self.now) {
            Ok(call) => calls.extend(call),
            Err(request) => {
                self.flush();
                return Err(request);
            }
        }
        if calls.len() >= HAND_OVER {
            comet.hand_over(std::mem::take(calls));
        }
        Ok(())
    }

    /// Hands everything over and forgets the comets. To be called before a wait.
    pub fn flush(&mut self) {
        for (_, Outgoing { comet, calls }) in self.comets.drain() {
            comet.hand_over(calls);
        }
    }

    /// Continues after a wait.
    pub fn resume(&mut self) {
        self.now = Instant::now();
    }
}

impl Drop for CallBatch<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
