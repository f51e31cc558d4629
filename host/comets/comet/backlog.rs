//! Parts of calls that a comet did not take as a whole.
//!
//! Finding out which of a call's connections do not take it may need thousands of calls. They are
//! made one at a time for each lane, and each takes its turn in the lane: what else is in there goes
//! on in between, one for one. Later messages for connections that have a part here line up behind it, so that
//! the order of each connection stays.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::comets::job::Job;
use crate::comets::lanes::LaneSet;
use crate::message::ConnectionId;

/// The parts that wait, in one line for each lane.
#[derive(Debug)]
pub(super) struct Backlog {
    lines: Vec<Line>,
}

/// The part that has its turn, and what is known of its line.
pub(super) struct Next {
    pub(super) job: Job,
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
}

/// The parts of one lane, in order.
#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// In how many of them a connection is.
    keys: HashMap<ConnectionId, usize>,
    /// Failed attempts at the first part.
    failures: u32,
    last_error: Option<String>,
    /// When the first part is to be tried again; `None` for at once.
    again: Option<Instant>,
    /// Whether it stands in its lane, or has its turn.
    has_turn: bool,
}

impl Backlog {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lines: (0..lanes).map(|_| Line::default()).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.jobs.is_empty())
    }

    /// Whether a message for this connection has to line up here.
    fn covers(&self, key: &ConnectionId) -> bool {
        self.lines[self.lane_of(key)].keys.contains_key(key)
    }

    /// Lines up the connections of a job that have to wait here; returns what is left of it.
    pub(super) fn line_up(&mut self, job: Job) -> Option<Job> {
        let nobody_waits = self.lines.iter().all(|line| line.keys.is_empty());
        if nobody_waits || !job.keys().iter().any(|key| self.covers(key)) {
            return Some(job);
        }
        let (behind, free): (Vec<_>, Vec<_>) = job.keys().iter().cloned().partition(|key| self.covers(key));
        if free.is_empty() {
            self.push(job, None);
            return None;
        }
        let mut parts = job.split(vec![free, behind]);
        if let Some(behind) = parts.pop() {
            self.push(behind, None);
        }
        let mut free = parts.pop()?;
        free.is_divided = false;
        Some(free)
    }

    /// Lines up a job for connections, in parts for each of their lanes. `error` is why.
    pub(super) fn push(&mut self, job: Job, error: Option<&str>) {
        let mut groups = vec![Vec::new(); self.lines.len()];
        for key in job.keys() {
            groups[self.lane_of(key)].push(key.clone());
        }
        let lanes: Vec<_> = (0..groups.len()).filter(|lane| !groups[*lane].is_empty()).collect();
        groups.retain(|group| !group.is_empty());
        let parts = if groups.len() > 1 { job.split(groups) } else { vec![job] };
        for (lane, part) in lanes.into_iter().zip(parts) {
            let line = &mut self.lines[lane];
            if let (None, Some(error)) = (&line.last_error, error) {
                line.last_error = Some(error.to_owned());
            }
            line.insert(line.jobs.len(), part);
        }
    }

    /// The lanes whose parts need a turn and have none yet.
    pub(super) fn turns(&mut self) -> impl Iterator<Item = usize> {
        let needs = |line: &&mut Line| !line.has_turn && line.again.is_none() && !line.jobs.is_empty();
        let lines = self.lines.iter_mut().enumerate();
        lines.filter_map(move |(lane, mut line)| {
            needs(&&mut line).then(|| {
                line.has_turn = true;
                lane
            })
        })
    }

    /// What has its turn in this lane, which the caller holds until [`Backlog::turn_is_over`].
    pub(super) fn take(&mut self, lane: usize) -> Option<Next> {
        let line = &mut self.lines[lane];
        let mut job = line.jobs.pop_front()?;
        line.forget(&job);
        // What came to be known since it was lined up may concern it.
        job.is_divided = false;
        Some(Next { job, failures: std::mem::take(&mut line.failures), last_error: line.last_error.clone() })
    }

    /// The turn of a lane is over; these are left of it. `after_siblings`: whether the other parts
    /// of the same message come first, so that connections which take it get it soon.
    pub(super) fn turn_is_over(&mut self, lane: usize, left: VecDeque<Job>, after_siblings: bool) {
        let line = &mut self.lines[lane];
        line.has_turn = false;
        let first = left.front().filter(|_| after_siblings);
        let mut at =
            first.map_or(0, |part| line.jobs.iter().take_while(|job| job.is_sibling_of(part)).count());
        for job in left {
            line.insert(at, job);
            at += 1;
        }
        if line.jobs.is_empty() {
            *line = Line::default();
        }
    }

    /// The first part of a lane waits for another attempt.
    pub(super) fn rest(&mut self, lane: usize, failures: u32, error: String, again: Instant) {
        let line = &mut self.lines[lane];
        (line.failures, line.last_error, line.again) = (failures, Some(error), Some(again));
    }

    /// When the next part is to be tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.lines.iter().filter_map(|line| line.again).min()
    }

    /// Lets go on what has waited until now.
    pub(super) fn wake(&mut self, now: Instant) {
        for line in &mut self.lines {
            line.again.take_if(|again| *again <= now);
        }
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.lines.iter_mut().flat_map(|line| {
            line.keys.clear();
            (line.failures, line.last_error, line.again) = (0, None, None);
            std::mem::take(&mut line.jobs)
        })
    }

    fn lane_of(&self, key: &ConnectionId) -> usize {
        LaneSet::index_of(key.as_str(), self.lines.len())
    }
}

impl Line {
    fn insert(&mut self, at: usize, job: Job) {
        for key in job.keys() {
            *self.keys.entry(key.clone()).or_default() += 1;
        }
        self.jobs.insert(at, job);
    }

    fn forget(&mut self, job: &Job) {
        for key in job.keys() {
            if let Some(count) = self.keys.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(key);
                }
            }
        }
    }
}
