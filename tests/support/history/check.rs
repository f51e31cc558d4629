//! Checks a history.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::{History, Occurrence, ReceivedMessage, Report, SentMessage};

impl History {
    /// Compares what was sent with what was received.
    pub fn check(&self) -> Report {
        let sent: HashMap<&str, &SentMessage> =
            self.sent.iter().map(|sent| (sent.id.as_str(), sent)).collect();
        let mut report = Report { sent: sent.len(), received: self.received.len(), ..Report::default() };
        report.dead_lettered = self.sent.iter().filter(|sent| self.dead_lettered.contains(&sent.id)).count();
        report.kept = self.kept.len();
        let mut seen = SeenMessages::default();
        for receipt in &self.received {
            self.check_receipt(receipt, &sent, &mut seen, &mut report);
        }
        for sent in &self.sent {
            for comet in self.rooms.get(&sent.room).into_iter().flat_map(BTreeMap::keys) {
                self.check_debt(sent, comet, &seen, &mut report);
            }
        }
        report
    }

    fn check_receipt<'a>(
        &self,
        receipt: &'a ReceivedMessage,
        sent: &HashMap<&str, &SentMessage>,
        seen: &mut SeenMessages<'a>,
        report: &mut Report,
    ) {
        let at = Occurrence::of(receipt);
        let Some(sent) = sent.get(receipt.id.as_str()) else { return report.misrouted.push(at) };
        if !self.belongs(receipt, sent) {
            return report.misrouted.push(at);
        }
        let place = (receipt.comet.as_str(), receipt.room.as_str());
        let first = seen.first.entry((place, receipt.number));
        if let std::collections::hash_map::Entry::Occupied(first) = &first {
            if self.excuses.iter().any(|it| it.covers(&receipt.comet, *first.get(), receipt.at)) {
                return report.excused.push(at);
            }
            if !self.explained(sent, *first.get(), receipt.at) {
                report.unexplained.push(at.clone());
            }
            return report.repeated.push(at);
        }
        first.or_insert(receipt.at);
        // Abandoned calls are stored for their users; the call may still arrive late.
        let refused = self.refused.contains(&(sent.id.clone(), receipt.comet.clone()));
        if refused || self.paid_elsewhere(sent, &receipt.comet) {
            return;
        }
        if let Some(version) = receipt.version {
            let last = seen.versions.entry(place).or_default();
            if version < *last {
                report.version_regressed.push(at.clone());
            }
            *last = version;
        }
        let newest = seen.newest.entry(place).or_insert(receipt.number);
        if receipt.number < *newest {
            report.reordered.push(at);
        }
        *newest = receipt.number.max(*newest);
    }

    fn check_debt(&self, sent: &SentMessage, comet: &str, seen: &SeenMessages<'_>, report: &mut Report) {
        if self.paid_elsewhere(sent, comet) {
            return;
        }
        let is_deleted = sent.incarnation < self.incarnation;
        let at = Occurrence { comet: comet.to_owned(), room: sent.room.clone(), number: sent.number };
        let Some(first) = seen.first.get(&((comet, sent.room.as_str()), sent.number)) else {
            return if !is_deleted {
                report.lost.push(at)
            };
        };
        let committed_before = self.interruptions.iter().any(|interruption| {
            let same_log = interruption.incarnation == sent.incarnation;
            let committed = interruption.committed.get(&sent.partition).filter(|_| same_log);
            interruption.read < *first && committed.is_some_and(|committed| sent.offset < *committed)
        });
        if committed_before {
            report.committed_undelivered.push(at);
        }
    }

    /// Whether this message had to arrive here in this form.
    fn belongs(&self, receipt: &ReceivedMessage, sent: &SentMessage) -> bool {
        let comets = self.rooms.get(&sent.room);
        let same = (&receipt.room, receipt.number) == (&sent.room, sent.number);
        same && receipt.to == sent.room && comets.is_some_and(|comets| comets.contains_key(&receipt.comet))
    }

    /// Whether the comet's users received the message otherwise, or were not meant to.
    fn paid_elsewhere(&self, sent: &SentMessage, comet: &str) -> bool {
        if self.dead_lettered.contains(&sent.id) || self.dropped.contains(&sent.id) {
            return true;
        }
        let users = self.rooms.get(&sent.room).and_then(|comets| comets.get(comet));
        let kept = |user: &String| self.kept.contains(&(sent.id.clone(), user.clone()));
        users.is_some_and(|users| users.iter().all(kept))
    }

    /// Whether an interruption can explain a repeated message at these times.
    fn explained(&self, sent: &SentMessage, first: Instant, again: Instant) -> bool {
        self.interruptions.iter().any(|interruption| {
            if interruption.incarnation > sent.incarnation {
                return false;
            }
            // For a topic created later, nothing was committed then.
            let same_log = interruption.incarnation == sent.incarnation;
            let committed = interruption.committed.get(&sent.partition).filter(|_| same_log);
            let committed = committed.copied().unwrap_or(0);
            first <= interruption.until && interruption.from <= again && committed <= sent.offset
        })
    }
}

/// A comet and a room.
type CometRoom<'a> = (&'a str, &'a str);

#[derive(Default)]
struct SeenMessages<'a> {
    first: HashMap<(CometRoom<'a>, u64), Instant>,
    newest: BTreeMap<CometRoom<'a>, u64>,
    versions: BTreeMap<CometRoom<'a>, u32>,
}
