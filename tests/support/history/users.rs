//! "Decided for user U": what became of every message that was decided for a user. Pure, and itself tested
//! with planted faults.
//!
//! Each message was delivered live, or is in the user's inbox, or its record is a dead letter. An inbox has
//! each message once, in order; with the archive, MySQL has what the inboxes have. What a device was shown
//! (live, then replayed from its own cursor, repeats dropped by id) is complete, and its replays are in order.
//! After an interruption a record may be stored again under the same id: readers drop it. A message that was
//! delivered live and is stored as well, because its record was delivered again, is exempt from the order,
//! and need not be in the archive.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Ids by user, in order.
pub type ByUser = BTreeMap<String, Vec<String>>;

/// What was recorded of a run.
#[derive(Debug, Default, Clone)]
pub struct UserHistory {
    /// The ids of the messages for each user, in the order of the log.
    pub decided: ByUser,
    /// The ids that a comet took for the user's connections, in order of arrival, repeats included.
    pub live: ByUser,
    /// The ids in the user's inbox.
    pub inbox: ByUser,
    /// The ids in the archive, in its order; `None` without an archive.
    pub archived: Option<ByUser>,
    /// What each device of each user replayed, in order, repeats included.
    pub replayed: BTreeMap<(String, String), Vec<String>>,
    /// Ids of records in the dead-letter topic.
    pub dead_lettered: BTreeSet<String>,
    /// Whether something was interrupted, so that records were delivered again.
    pub interrupted: bool,
}

/// A message and a user.
pub type UserMessage = (String, String);

/// The result of [`UserHistory::check`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UserReport {
    pub decided: usize,
    pub live: usize,
    pub stored: usize,
    /// Neither delivered live, nor stored, nor a dead letter.
    pub lost: Vec<UserMessage>,
    /// Somewhere, but not decided for this user.
    pub foreign: Vec<UserMessage>,
    /// Twice in an inbox although nothing was interrupted, or twice in the archive.
    pub twice: Vec<UserMessage>,
    /// In an inbox or in the archive after a later one.
    pub reordered: Vec<UserMessage>,
    /// In the inbox and not in the archive.
    pub not_archived: Vec<UserMessage>,
    /// In the inbox, and a device that replayed to the end never got it.
    pub not_replayed: Vec<UserMessage>,
    /// Replayed to a device after a later one, or twice.
    pub replayed_wrongly: Vec<UserMessage>,
}

impl UserHistory {
    /// Compares what was decided with what became of it.
    pub fn check(&self) -> UserReport {
        let mut report = UserReport::default();
        for (user, decided) in &self.decided {
            let places: HashMap<&str, usize> =
                decided.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
            self.check_user(user, decided, &places, &mut report);
        }
        report
    }

    fn check_user(
        &self,
        user: &str,
        decided: &[String],
        places: &HashMap<&str, usize>,
        report: &mut UserReport,
    ) {
        let of = |all: &ByUser| all.get(user).cloned().unwrap_or_default();
        let (live, inbox) = (of(&self.live), of(&self.inbox));
        let named = |id: &String| (id.clone(), user.to_owned());
        let stored: BTreeSet<&String> = inbox.iter().collect();
        let reached: BTreeSet<&String> = live.iter().chain(&inbox).chain(&self.dead_lettered).collect();
        report.decided += decided.len();
        report.live += live.iter().collect::<BTreeSet<_>>().len();
        report.stored += stored.len();
        report.lost.extend(decided.iter().filter(|id| !reached.contains(id)).map(named));
        let archived = self.archived.as_ref().map(of);
        let everywhere = live.iter().chain(&inbox).chain(archived.iter().flatten());
        report.foreign.extend(everywhere.filter(|id| !places.contains_key(id.as_str())).map(named));

        let is_new = |id: &&String| !live.contains(*id);
        let InOrder { twice, late } = in_order(&inbox, places);
        report.reordered.extend(late.iter().filter(is_new).map(named));
        if !self.interrupted {
            report.twice.extend(twice.iter().map(named));
        }
        if let Some(archived) = archived {
            let InOrder { twice, late } = in_order(&archived, places);
            report.twice.extend(twice.iter().map(named));
            report.reordered.extend(late.iter().filter(is_new).map(named));
            let has: BTreeSet<&String> = archived.iter().collect();
            // A gateway that is killed before it archives may deliver the message live the next time.
            let is_exempt = |id: &&String| self.interrupted && !is_new(id);
            let missing = stored.iter().copied().filter(|id| !has.contains(*id) && !is_exempt(id));
            report.not_archived.extend(missing.map(named));
        }
        for ((_, device), replayed) in self.replayed.iter().filter(|((owner, _), _)| owner == user) {
            let InOrder { twice, late } = in_order(replayed, places);
            let named = |id: &String| (id.clone(), format!("{user} on {device}"));
            // What was stored twice is read twice.
            if !self.interrupted {
                report.replayed_wrongly.extend(twice.iter().map(named));
            }
            report.replayed_wrongly.extend(late.iter().filter(is_new).map(named));
            let has: BTreeSet<&String> = replayed.iter().collect();
            report.not_replayed.extend(stored.iter().filter(|id| !has.contains(*id)).map(|id| named(id)));
        }
    }
}

/// What is wrong with a sequence of ids.
struct InOrder {
    twice: Vec<String>,
    /// First seen after a later one.
    late: Vec<String>,
}

fn in_order(ids: &[String], places: &HashMap<&str, usize>) -> InOrder {
    let (mut seen, mut newest) = (BTreeSet::new(), 0);
    let mut found = InOrder { twice: Vec::new(), late: Vec::new() };
    for id in ids {
        let Some(place) = places.get(id.as_str()) else { continue };
        if !seen.insert(id) {
            found.twice.push(id.clone());
        } else if *place < newest {
            found.late.push(id.clone());
        }
        newest = newest.max(*place);
    }
    found
}

impl UserReport {
    /// # Panics
    /// If anything is wrong.
    pub fn assert_exactly_once_in_order(&self) {
        let Self { decided, live, stored, .. } = *self;
        let nothing_wrong = Self { decided, live, stored, ..Self::default() };
        assert_eq!(*self, nothing_wrong, "each message once, live or in the inbox, in order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn ann(text: &str) -> ByUser {
        BTreeMap::from([("ann".to_owned(), ids(text))])
    }

    /// Five messages: two live, two stored and replayed by one device, one dead letter.
    fn good() -> UserHistory {
        UserHistory {
            decided: ann("1 2 3 4 5"),
            live: ann("1 5"),
            inbox: ann("2 3"),
            archived: Some(ann("2 3")),
            replayed: BTreeMap::from([(("ann".to_owned(), "phone".to_owned()), ids("2 3"))]),
            dead_lettered: BTreeSet::from(["4".to_owned()]),
            interrupted: false,
        }
    }

    fn message(id: &str) -> Vec<UserMessage> {
        vec![(id.to_owned(), "ann".to_owned())]
    }

    #[test]
    fn a_good_run_is_accepted() {
        let report = good().check();
        report.assert_exactly_once_in_order();
        assert_eq!((report.decided, report.live, report.stored), (5, 2, 2));
        // Live and stored: the user returned at that moment, and drops the repeat.
        UserHistory { live: ann("1 3 5"), ..good() }.check().assert_exactly_once_in_order();
    }

    #[test]
    fn planted_faults_are_found() {
        let live = UserHistory { live: ann("1"), ..good() }.check();
        assert_eq!(live.lost, message("5"));
        let mut not_stored = UserHistory { inbox: ann("3"), archived: None, ..good() };
        not_stored.replayed.clear();
        assert_eq!(not_stored.check().lost, message("2"));
        let letter = UserHistory { dead_lettered: BTreeSet::new(), ..good() }.check();
        assert_eq!(letter.lost, message("4"));
        assert_eq!(UserHistory { live: ann("1 5 9"), ..good() }.check().foreign, message("9"));
        assert_eq!(
            UserHistory { inbox: ann("2 3 9"), archived: None, ..good() }.check().foreign,
            message("9")
        );
        assert_eq!(UserHistory { inbox: ann("3 2"), ..good() }.check().reordered, message("2"));
        let twice = UserHistory { inbox: ann("2 3 2"), ..good() };
        assert_eq!(twice.check().twice, message("2"));
        assert_eq!(UserHistory { interrupted: true, ..twice }.check().twice, []);
        let archived = |text| UserHistory { archived: Some(ann(text)), interrupted: true, ..good() }.check();
        assert_eq!(archived("2").not_archived, message("3"));
        let live = |interrupted| {
            UserHistory { live: ann("1 3 5"), archived: Some(ann("2")), interrupted, ..good() }.check()
        };
        assert_eq!((live(true).not_archived, live(false).not_archived), (vec![], message("3")));
        assert_eq!(archived("2 3 3").twice, message("3"), "the archive has a key");
        assert_eq!(archived("3 2").reordered, message("2"));
    }

    #[test]
    fn planted_faults_of_devices_are_found() {
        let replayed = |text: &str, interrupted| {
            let replayed = BTreeMap::from([(("ann".to_owned(), "phone".to_owned()), ids(text))]);
            UserHistory { replayed, interrupted, ..good() }.check()
        };
        let phone = |id: &str| vec![(id.to_owned(), "ann on phone".to_owned())];
        assert_eq!(replayed("2", false).not_replayed, phone("3"));
        assert_eq!(replayed("3 2", true).replayed_wrongly, phone("2"));
        assert_eq!(replayed("2 3 3", false).replayed_wrongly, phone("3"));
        replayed("2 3 3", true).assert_exactly_once_in_order();
    }

    #[test]
    #[should_panic(expected = "each message once")]
    fn a_bad_run_is_refused() {
        UserHistory { live: ann("1"), ..good() }.check().assert_exactly_once_in_order();
    }
}
