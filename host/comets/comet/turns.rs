//! Which call goes on, which waits with its lanes, and which makes way for what else is in them.
//!
//! A call has its lanes for one attempt, and for all attempts while the comet cannot be reached.
//! What the comet answered for, but did not take, waits without them: between its attempts, one of
//! those that wait in its lane has its turn.

use std::collections::VecDeque;
use std::time::Instant;

use super::actor::Actor;
use super::call::{Call, Item, Origin};
use super::parked::Name;
use crate::comets::job::Job;
use crate::comets::retry;

impl Actor {
    /// The next call that may start; nothing inside when what had its turn is gone.
    pub(super) fn next_call(&mut self) -> Option<Option<Call>> {
        let (token, item) = self.lanes.next_ready()?;
        Some(match item {
            Item::Job(job) => {
                let mut call = Call::new(token, job);
                if self.merges {
                    call.take_along(&mut self.lanes);
                }
                Some(call)
            }
            Item::Turn(name) => match self.parked.take(&name) {
                Some(waiting) => Some(Call::again(token, name, waiting)),
                None => {
                    self.lanes.finish(token);
                    None
                }
            },
            Item::Backlog(lane) => match self.backlog.take(lane) {
                Some(next) => Some(Call::part(token, lane, next)),
                None => {
                    self.backlog.turn_is_over(lane, VecDeque::new(), false);
                    self.lanes.finish(token);
                    None
                }
            },
        })
    }

    /// Goes on with what is left of a call: at once, or when it has its turn again.
    pub(super) fn go_on(&mut self, call: Call) {
        if call.is_done() {
            self.finish(call);
        } else if call.keeps_its_lanes() {
            self.due.push(call);
        } else {
            self.make_way(call);
        }
    }

    /// Frees the lanes of a call that has more to do, which waits for its next turn.
    fn make_way(&mut self, mut call: Call) {
        let name = match call.origin() {
            Origin::Backlog(_) => return self.finish(call),
            Origin::Parked(name) => Some(name.clone()),
            Origin::Lane => call.room().cloned().map(Name::Room),
        };
        let (failures, last_error) = call.failed_with();
        let jobs = call.take_all();
        let Some(name) = name else {
            jobs.into_iter().for_each(|job| self.backlog.push(job, last_error.as_deref()));
            return self.finish(call);
        };
        self.finish(call);
        self.parked.line_up(name.clone(), jobs, failures, last_error);
        let lanes = name.lanes(self.lane_count);
        match lanes.single() {
            Some(lane) => self.lanes.push_second(lane, Item::Turn(name)),
            None => self.lanes.push(lanes, Item::Turn(name)),
        }
    }

    /// Frees the lanes of a call. What is left of one from the backlog goes back there.
    pub(super) fn finish(&mut self, mut call: Call) {
        if let Origin::Backlog(lane) = *call.origin() {
            let behind_siblings = call.is_broad();
            self.backlog.turn_is_over(lane, call.take_all(), behind_siblings);
        }
        self.lanes.finish(call.into_token());
        self.give_turns();
    }

    /// Lets the parts that wait without a turn line up in their lanes.
    fn give_turns(&mut self) {
        for lane in self.backlog.turns() {
            self.lanes.push_second(lane, Item::Backlog(lane));
        }
    }

    /// Lets a message wait for another attempt, and with it those of the same name; the call's
    /// lanes go on with others.
    pub(super) fn park(&mut self, mut call: Call, error: String) {
        let has_room = self.parked.has_room();
        if !has_room && *call.origin() == Origin::Lane {
            return self.rest(call, error);
        }
        self.active.standing.metrics.retries.inc();
        let (failures, queued) = (call.note_failure(error.clone()), call.queued());
        let now = Instant::now();
        let last = queued.map_or(now, |queued| queued + self.timing.give_up_after);
        let again = last.min(now + retry::BACKOFF.wait_after(failures, fastrand::f64()));
        match call.origin().clone() {
            Origin::Backlog(lane) if !has_room => {
                self.backlog.rest(lane, failures, error, again);
                self.finish(call);
            }
            Origin::Parked(name) if !has_room => {
                self.parked.park(name, call.take_all(), failures, error, again);
                self.finish(call);
            }
            _ => match call.take_front() {
                Some((name, waiting)) => {
                    self.parked.park(name, waiting, failures, error, again);
                    self.go_on(call);
                }
                // Nothing is named by several connections; those are divided.
                None => self.end(call, &error),
            },
        }
    }

    /// Lets a call wait for another attempt, with its lanes.
    pub(super) fn rest(&mut self, mut call: Call, error: String) {
        self.active.standing.metrics.retries.inc();
        let again = Instant::now() + retry::BACKOFF.wait_after(call.note_failure(error), fastrand::f64());
        if let Some(call) = self.without_expired(call, again) {
            self.resting.push((again, call));
        }
    }

    /// When something is to be done again.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let calls = self.resting.iter().map(|(at, _)| *at);
        calls.chain(self.parked.next()).chain(self.backlog.next()).chain(self.probe.next()).min()
    }

    /// Takes up the calls whose wait is over.
    pub(super) fn wake(&mut self) {
        let now = Instant::now();
        let over = self.resting.extract_if(.., |(at, _)| *at <= now);
        self.due.extend(over.map(|(_, call)| call));
        for name in self.parked.due(now) {
            self.lanes.push(name.lanes(self.lane_count), Item::Turn(name));
        }
        self.backlog.wake(now);
        self.give_turns();
    }

    /// Ends what would be too old at a moment, or is nobody's any more; returns the call if some of
    /// it is left.
    pub(super) fn without_expired(&mut self, mut call: Call, at: Instant) -> Option<Call> {
        call.forget_abandoned();
        if call.expire(at, self.timing.give_up_after) {
            self.active.standing.note_behind(self.timing.give_up_after);
        }
        if call.is_done() {
            self.finish(call);
            return None;
        }
        Some(call)
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.parked.is_empty() && self.backlog.is_empty()
    }

    /// Takes out everything that waits without a lane.
    pub(super) fn take_waiting(&mut self) -> Vec<Job> {
        self.parked.drain().chain(self.backlog.drain()).collect()
    }

    pub(super) fn end(&mut self, mut call: Call, why: &str) {
        call.give_up(why, self.active.standing.last_error());
        self.finish(call);
    }
}
