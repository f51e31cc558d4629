//! Plans the calls of one message from a resolved route.
//!
//! Pure. A [`Route`] is a regrouped room, by comet. A [`DeliveryPlan`] is what one message needs: at most
//! one call per comet, and the absent recipients.

mod redrive;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use crate::decision::{AbsenceCause, AbsentRecipient, IdKind, Overrides};
use crate::membership::{Connection, CurrentPlacement, Grouping, Member};
use crate::message::{CallTarget, CometAddr, ConnectionId, NamedBy, RoomId, UserId};

/// A recipient, and the connection through which it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The connection.
    pub connection: ConnectionId,
    /// Its user, if the directory names one.
    pub user: Option<UserId>,
}

impl Recipient {
    /// The recipient as the offline policy sees it.
    pub fn absent(&self, cause: AbsenceCause) -> AbsentRecipient {
        let (user, identity) = match &self.user {
            Some(user) => (user.clone(), IdKind::User),
            None => (self.connection.as_str().into(), IdKind::Connection),
        };
        AbsentRecipient { user, identity, connection: Some(self.connection.clone()), cause, by_policy: false }
    }

    /// The user or connection id, as in [`Recipient::absent`].
    pub fn name(&self) -> &str {
        self.user.as_ref().map_or(self.connection.as_str(), UserId::as_str)
    }
}

/// Whether a comet is called for the whole room or by connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareKind {
    /// Exactly the comet's connections in the room: one call for the room.
    Whole,
    /// Some of them, or others in addition: one call with the connection ids.
    Partial,
}

/// A comet's part of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CometShare {
    /// The comet.
    pub comet: CometAddr,
    /// Who named the comet.
    pub named_by: NamedBy,
    /// Whether a call for the room reaches exactly these.
    pub part: ShareKind,
    /// The recipients; never empty.
    pub recipients: Arc<[Recipient]>,
}

/// The recipients that were not reached: each of `absent` once, in order, without those that are
/// reached through a connection in `reached`. A user with several devices is one recipient.
pub fn distinct_absent<'a>(
    absent: impl IntoIterator<Item = AbsentRecipient>,
    reached: impl IntoIterator<Item = &'a Recipient>,
) -> Vec<AbsentRecipient> {
    split_reached(absent, reached).0
}

/// Like [`distinct_absent`], but also returns those that are excluded because they are reached elsewhere.
fn split_reached<'a>(
    absent: impl IntoIterator<Item = AbsentRecipient>,
    reached: impl IntoIterator<Item = &'a Recipient>,
) -> (Vec<AbsentRecipient>, Vec<AbsentRecipient>) {
    let mut seen = HashSet::new();
    let mut absent: Vec<_> = absent.into_iter().collect();
    absent.retain(|absent| seen.insert(absent.user.clone()));
    // Absent recipients are usually few, so only their names are collected.
    let reached: HashSet<_> = if absent.is_empty() {
        HashSet::new()
    } else {
        reached.into_iter().map(Recipient::name).filter(|name| seen.contains(*name)).collect()
    };
    if reached.is_empty() {
        return (absent, Vec::new());
    }
    absent.into_iter().partition(|absent| !reached.contains(absent.user.as_str()))
}

/// A resolved and regrouped room. Created once per resolution, shared by its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// One share per comet to call, in order of appearance.
    pub shares: Vec<CometShare>,
    /// Users who are offline or treated as offline, each once.
    pub absent: Arc<[AbsentRecipient]>,
    /// Users who are treated as offline on one connection and reached on another.
    pub reached_elsewhere: Arc<[AbsentRecipient]>,
    /// Connections that the directory has in the room.
    pub connections: usize,
    /// Members without connection information.
    pub stale: usize,
    /// Members that a policy skips.
    pub skipped: usize,
    /// See [`Route::has_multi_device_users`].
    repeats: OnceLock<bool>,
}

impl Route {
    /// Groups a room by comet.
    ///
    /// A comet's share is whole unless a policy moved one of its members away, or another member to
    /// it. Offline members do not make it partial. A comet with only offline members is not called.
    pub fn new(grouping: &Grouping) -> Self {
        let mut shares = CometShares::default();
        let mut absent = Vec::new();
        let mut skipped = 0;
        for (member, place) in grouping.members() {
            let home = &grouping.comets()[member.comet as usize];
            let (at, named_by) = match place {
                CurrentPlacement::At(comet) => (&grouping.comets()[comet as usize], grouping.named_by(comet)),
                CurrentPlacement::Skipped | CurrentPlacement::Offline => {
                    shares.make_partial(home);
                    if place == CurrentPlacement::Skipped {
                        skipped += 1;
                    } else {
                        let away = recipient(member).absent(AbsenceCause::NotOnline);
                        absent.push(AbsentRecipient { by_policy: member.online, ..away });
                    }
                    continue;
                }
            };
            if at != home {
                shares.make_partial(home);
                shares.make_partial(at);
            }
            if member.online {
                shares.add(at, named_by, recipient(member));
            } else {
                absent.push(recipient(member).absent(AbsenceCause::NotOnline));
            }
        }
        let membership = grouping.membership();
        let shares = shares.into_vec();
        let (absent, reached_elsewhere) =
            split_reached(absent, shares.iter().flat_map(|share| share.recipients.iter()));
        Self {
            shares,
            absent: absent.into(),
            reached_elsewhere: reached_elsewhere.into(),
            connections: membership.members.len(),
            stale: membership.stale,
            skipped,
            repeats: OnceLock::new(),
        }
    }

    /// Whether a user is reached through several connections. Computed on first use, which is when a
    /// comet was not reached.
    pub fn has_multi_device_users(&self) -> bool {
        *self.repeats.get_or_init(|| {
            let mut seen = HashSet::new();
            let mut recipients = self.shares.iter().flat_map(|share| share.recipients.iter());
            !recipients.all(|recipient| seen.insert(recipient.name()))
        })
    }
}

fn recipient(member: &Member) -> Recipient {
    Recipient { connection: member.id.clone(), user: member.user.clone() }
}

/// Shares while they are collected, in order of appearance.
#[derive(Default)]
struct CometShares {
    comets: Vec<(CometAddr, NamedBy, Vec<Recipient>)>,
    indexes: HashMap<CometAddr, usize>,
    partial: HashSet<CometAddr>,
}

impl CometShares {
    fn add(&mut self, comet: &CometAddr, named_by: NamedBy, recipient: Recipient) {
        let index = match self.indexes.get(comet) {
            Some(index) => *index,
            None => {
                self.comets.push((comet.clone(), named_by, Vec::new()));
                self.indexes.insert(comet.clone(), self.comets.len() - 1);
                self.comets.len() - 1
            }
        };
        let (_, before, recipients) = &mut self.comets[index];
        *before = named_by.min(*before);
        recipients.push(recipient);
    }

    fn make_partial(&mut self, comet: &CometAddr) {
        if !self.partial.contains(comet) {
            self.partial.insert(comet.clone());
        }
    }

    fn into_vec(self) -> Vec<CometShare> {
        let share = |(comet, named_by, recipients): (CometAddr, NamedBy, Vec<Recipient>)| {
            let part = if self.partial.contains(&comet) { ShareKind::Partial } else { ShareKind::Whole };
            CometShare { comet, named_by, part, recipients: recipients.into() }
        };
        self.comets.into_iter().map(share).collect()
    }
}

/// One call to one comet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The comet.
    pub comet: CometAddr,
    /// Who named it.
    pub named_by: NamedBy,
    /// What the call is for.
    pub target: CallTarget,
    /// The recipients; empty if unknown (BROADCAST, every-comet rooms).
    pub recipients: Arc<[Recipient]>,
}

/// What one message needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryPlan {
    /// At most one call per comet.
    pub deliveries: Vec<Delivery>,
    /// Absent users whom no delivery reaches, each once.
    pub absent: Arc<[AbsentRecipient]>,
    /// Recipients from whom a policy withholds the message.
    pub withheld: usize,
    /// Whether it is for all known comets; then there should be at least one.
    pub is_for_every_comet: bool,
}

impl DeliveryPlan {
    /// A message to a room that was found in the directory.
    pub fn room(room: &RoomId, route: &Route, overrides: &Overrides) -> Self {
        let mut plan = Self { absent: Arc::clone(&route.absent), withheld: route.skipped, ..Self::default() };
        for share in &route.shares {
            let target = match share.part {
                ShareKind::Whole => CallTarget::Room(room.clone()),
                ShareKind::Partial => CallTarget::Connections(connections(&share.recipients)),
            };
            plan.deliver((&share.comet, share.named_by), target, Arc::clone(&share.recipients), overrides);
        }
        if !route.reached_elsewhere.is_empty() && plan.deliveries.len() < route.shares.len() {
            // Some are not reached elsewhere after all, because the message is withheld there.
            let all = route.absent.iter().chain(route.reached_elsewhere.iter()).cloned();
            let reached = plan.deliveries.iter().flat_map(|delivery| delivery.recipients.iter());
            plan.absent = distinct_absent(all, reached).into();
        }
        plan.deliver_also(&CallTarget::Room(room.clone()), overrides);
        plan
    }

    /// A message to everyone, or to a room for which every comet is called.
    pub fn everywhere(comets: &[CometAddr], target: &CallTarget, overrides: &Overrides) -> Self {
        let mut plan = Self { is_for_every_comet: true, ..Self::default() };
        for comet in comets {
            plan.deliver((comet, NamedBy::Directory), target.clone(), Arc::new([]), overrides);
        }
        plan.deliver_also(target, overrides);
        plan.divide_speed();
        plan
    }

    /// A message to keys whose comet the producer named.
    pub fn server(comet: &CometAddr, keys: &[Arc<str>], overrides: &Overrides) -> Self {
        let recipient = |key: &Arc<str>| Recipient { connection: Arc::clone(key).into(), user: None };
        let recipients = keys.iter().map(recipient).collect();
        Self::by_connection(vec![(comet.clone(), NamedBy::Record, recipients)], overrides)
    }

    /// A message to keys that were looked up, each with its connection; a key without one is
    /// `unknown`.
    pub fn keys(found: Vec<(Arc<str>, Option<Connection>)>, unknown: IdKind, overrides: &Overrides) -> Self {
        let mut shares = CometShares::default();
        let mut absent = Vec::new();
        for (key, connection) in found {
            let Some(connection) = connection else {
                let cause = AbsenceCause::NoConnection;
                absent.push(AbsentRecipient {
                    user: key.into(),
                    identity: unknown,
                    connection: None,
                    cause,
                    by_policy: false,
                });
                continue;
            };
            let recipient = Recipient { connection: connection.id, user: connection.user };
            if connection.online {
                shares.add(&connection.comet, NamedBy::Directory, recipient);
            } else {
                absent.push(recipient.absent(AbsenceCause::NotOnline));
            }
        }
        let mut plan = Self::by_connection(shares.comets, overrides);
        if !absent.is_empty() {
            let reached = plan.deliveries.iter().flat_map(|delivery| delivery.recipients.iter());
            plan.absent = distinct_absent(absent, reached).into();
        }
        plan
    }

    fn by_connection(shares: Vec<(CometAddr, NamedBy, Vec<Recipient>)>, overrides: &Overrides) -> Self {
        let mut plan = Self::default();
        let mut everyone = Vec::new();
        for (comet, named_by, mut recipients) in shares {
            // A user given by id and by connection is one recipient.
            let mut seen = HashSet::new();
            recipients.retain(|recipient| seen.insert(recipient.connection.clone()));
            let connections = connections(&recipients);
            if !overrides.also.is_empty() {
                everyone.extend(connections.iter().cloned());
            }
            let target = CallTarget::Connections(connections);
            plan.deliver((&comet, named_by), target, recipients.into(), overrides);
        }
        if !everyone.is_empty() {
            plan.deliver_also(&CallTarget::Connections(everyone), overrides);
        }
        plan
    }

    fn deliver(
        &mut self,
        (comet, named_by): (&CometAddr, NamedBy),
        target: CallTarget,
        recipients: Arc<[Recipient]>,
        overrides: &Overrides,
    ) {
        if overrides.allow(comet) {
            self.deliveries.push(Delivery { comet: comet.clone(), named_by, target, recipients });
        } else {
            self.withheld += recipients.len();
        }
    }

    /// `also` adds comets beyond the route; `except` still excludes comets.
    fn deliver_also(&mut self, target: &CallTarget, overrides: &Overrides) {
        for comet in &overrides.also {
            let planned = self.deliveries.iter().any(|delivery| delivery.comet == *comet);
            if !planned && !overrides.except.contains(comet) {
                let (named_by, target) = (overrides.named_by(comet), target.clone());
                let recipients = Arc::new([]);
                self.deliveries.push(Delivery { comet: comet.clone(), named_by, target, recipients });
            }
        }
    }

    /// A BROADCAST's speed (clients per second) applies to all comets together, as in goim's job:
    /// the comets' speeds add up to it. If it is less than one per comet, each gets 1, the slowest
    /// possible speed. goim's job rounds down to 0 then, which comets treat as "no limit": a low
    /// speed must not become the highest. No limit (0 or less) stays no limit.
    fn divide_speed(&mut self) {
        let comets = i32::try_from(self.deliveries.len()).unwrap_or(i32::MAX).max(1);
        for (at, delivery) in (0..).zip(&mut self.deliveries) {
            if let CallTarget::Everyone { speed } = &mut delivery.target {
                let rest = i32::from(at < *speed % comets);
                *speed = if *speed > 0 { (*speed / comets + rest).max(1) } else { 0 };
            }
        }
    }
}

fn connections(recipients: &[Recipient]) -> Vec<ConnectionId> {
    recipients.iter().map(|recipient| recipient.connection.clone()).collect()
}

#[cfg(test)]
mod tests;
