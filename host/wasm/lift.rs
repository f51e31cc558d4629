//! Validates the answers of plugins and converts them to our plain types. Plugins are not trusted:
//! every length, index and name is checked here, and nowhere else.
//!
//! Errors name what is invalid or too large; they appear as `bad-answer` in metrics and in reasons.

use std::sync::Arc;
use std::time::Duration;

use crate::decision::{
    Disposition, Effect, FilteredMessage, Guard, MessagePart, PluginVersion, Retention, Verdict,
};
use crate::message::{Audience, CometAddr, NamedBy};
use crate::wasm::batch;
use crate::wasm::bindings::exports::halley::policy::filter::{self, Amendment, Once};
use crate::wasm::bindings::exports::halley::policy::{filter_columns, offline, retention};
use crate::wasm::failure::PluginFailure;
use crate::wasm::host::cut;
use crate::wasm::metrics::FilterDecision;

/// The longest reason that is kept, in bytes; the rest is truncated.
const MAX_REASON: usize = 1024;
/// The longest guard key, in bytes (WIT `once.key`).
const MAX_GUARD_KEY: usize = 512;
/// The maximum number of guards that one plugin may request for one message.
const MAX_GUARDS: usize = 16;
/// The maximum number of comets that one amendment may name.
const MAX_COMETS: usize = 1024;
/// The longest room id, key, comet address or channel, in bytes.
const MAX_NAME: usize = 1024;

/// A plugin's verdicts about a batch, unchecked, in the shape in which it returned them: most let
/// their message pass and are never converted.
#[derive(Debug)]
pub(crate) enum UncheckedVerdicts {
    Records(Vec<filter::Verdict>),
    Columns(Vec<filter_columns::Verdict>),
    /// Of `retention`: where each message is kept. Empty if nothing is kept.
    Kept(Vec<Retention>),
}

impl UncheckedVerdicts {
    /// Takes the verdict about one message of the batch; `None` if it passes.
    pub(crate) fn take(&mut self, at: usize) -> Option<UncheckedVerdict> {
        let verdict = match self {
            Self::Records(verdicts) => match verdicts.get_mut(at)? {
                filter::Verdict::Pass => return None,
                verdict => std::mem::replace(verdict, filter::Verdict::Pass),
            },
            Self::Columns(verdicts) => match verdicts.get_mut(at)? {
                filter_columns::Verdict::Pass => return None,
                verdict => batch::verdict(std::mem::replace(verdict, filter_columns::Verdict::Pass)),
            },
            Self::Kept(kept) => {
                let retention = kept.get(at).copied().filter(|retention| !retention.is_empty())?;
                return Some(UncheckedVerdict::Kept(retention));
            }
        };
        Some(UncheckedVerdict::Filter(verdict))
    }
}

/// A plugin's verdict about one message, unchecked.
#[derive(Debug)]
pub(crate) enum UncheckedVerdict {
    Filter(filter::Verdict),
    Kept(Retention),
}

impl UncheckedVerdict {
    /// The decision for metrics, and whether its reason is longer than the limit.
    pub(crate) fn decision(&self) -> (FilterDecision, bool) {
        let (decision, reason) = match self {
            Self::Kept(_) => (FilterDecision::Retain, ""),
            Self::Filter(filter::Verdict::Pass) => (FilterDecision::Pass, ""),
            Self::Filter(filter::Verdict::Drop(reason)) => (FilterDecision::Drop, reason.as_str()),
            Self::Filter(filter::Verdict::DeadLetter(reason)) => {
                (FilterDecision::DeadLetter, reason.as_str())
            }
            Self::Filter(filter::Verdict::Amend(_)) => (FilterDecision::Amend, ""),
        };
        (decision, reason.len() > MAX_REASON)
    }

    /// Applies it to a message, completely or not at all. The comets that it adds are attributed to
    /// `named_by`.
    ///
    /// # Errors
    /// When it does not fit the message, which then is unchanged.
    pub(crate) fn apply(
        self,
        filtered: &mut FilteredMessage,
        by: &PluginVersion,
        named_by: NamedBy,
    ) -> Result<(), PluginFailure> {
        match self {
            Self::Filter(verdict) => apply(verdict, filtered, by, named_by),
            Self::Kept(retention) => {
                retain(retention, filtered, by);
                Ok(())
            }
        }
    }
}

/// A plugin's disposition for one absent recipient, unchecked.
#[derive(Debug)]
pub(crate) struct UncheckedDisposition(pub(super) offline::Disposition);

impl UncheckedDisposition {
    /// The disposition; `None` if the plugin has no opinion.
    ///
    /// # Errors
    /// When it is invalid.
    pub(crate) fn check(self) -> Result<Option<Disposition>, PluginFailure> {
        disposition(self.0)
    }
}

/// Where each of `asked` messages is kept; empty if none is.
///
/// # Errors
/// When an index points outside of the batch, or there are more of them than messages.
pub(crate) fn kept(answer: &retention::Kept, asked: usize) -> Result<Vec<Retention>, PluginFailure> {
    let retention::Kept { inbox, history } = answer;
    if inbox.is_empty() && history.is_empty() {
        return Ok(Vec::new());
    }
    let mut kept = vec![Retention::default(); asked];
    mark(&mut kept, inbox, "inbox", |retention| retention.inbox = true)?;
    mark(&mut kept, history, "history", |retention| retention.history = true)?;
    Ok(kept)
}

fn mark(
    kept: &mut [Retention],
    indexes: &[u32],
    place: &str,
    mark: fn(&mut Retention),
) -> Result<(), PluginFailure> {
    let asked = kept.len();
    if indexes.len() > asked {
        let named = indexes.len();
        return Err(PluginFailure::bad_answer(format!("keeps {named} of {asked} messages in `{place}`")));
    }
    for at in indexes {
        let why = || PluginFailure::bad_answer(format!("keeps message {at} of {asked} in `{place}`"));
        mark(kept.get_mut(*at as usize).ok_or_else(why)?);
    }
    Ok(())
}

/// Adds to where a message is kept. Only rooms have histories.
fn retain(retention: Retention, filtered: &mut FilteredMessage, by: &PluginVersion) {
    let has_history = matches!(filtered.message.audience, Audience::Room(_));
    let retention = Retention { history: retention.history && has_history, ..retention };
    if !retention.is_empty() {
        filtered.retention = filtered.retention.and(retention);
        filtered.note(by, Effect::Retained(retention));
    }
}

/// Checks that there is one list element per question.
///
/// # Errors
/// When there are more or fewer.
pub(crate) fn check_count<T>(answers: Vec<T>, asked: usize, what: &str) -> Result<Vec<T>, PluginFailure> {
    if answers.len() != asked {
        return Err(PluginFailure::bad_answer(format!("returned {} {what} for {asked}", answers.len())));
    }
    Ok(answers)
}

/// Applies a filter's verdict to a message, completely or not at all. The comets that it adds are
/// attributed to `named_by`.
///
/// # Errors
/// When the verdict does not fit the message, which then is unchanged.
pub(crate) fn apply(
    verdict: filter::Verdict,
    filtered: &mut FilteredMessage,
    by: &PluginVersion,
    named_by: NamedBy,
) -> Result<(), PluginFailure> {
    match verdict {
        filter::Verdict::Pass => return Ok(()),
        filter::Verdict::Drop(reason) => {
            let reason = cut(&reason, MAX_REASON).to_owned();
            filtered.note(by, Effect::Dropped { reason: reason.clone() });
            filtered.verdict = Verdict::Drop { reason, by: by.clone() };
        }
        filter::Verdict::DeadLetter(reason) => {
            let reason = cut(&reason, MAX_REASON).to_owned();
            filtered.note(by, Effect::DeadLettered { reason: reason.clone() });
            filtered.verdict = Verdict::DeadLetter { reason, by: by.clone() };
        }
        filter::Verdict::Amend(amendment) => {
            check(&amendment, &filtered.message.audience)?;
            amend(amendment, filtered, by, named_by);
        }
    }
    Ok(())
}

fn check(amendment: &Amendment, audience: &Audience) -> Result<(), PluginFailure> {
    if let Some(room) = &amendment.room {
        if !matches!(audience, Audience::Room(_)) {
            return Err(PluginFailure::bad_answer("amended the room of a message that is not for a room"));
        }
        name(room, "room")?;
    }
    if let Some(keys) = &amendment.keys {
        if !matches!(audience, Audience::Keys { .. }) {
            return Err(PluginFailure::bad_answer("amended the keys of a message that is not for keys"));
        }
        if keys.is_empty() {
            return Err(PluginFailure::bad_answer("amended the keys to an empty list; use `drop`"));
        }
        keys.iter().try_for_each(|key| name(key, "key"))?;
    }
    let named = amendment.only.iter().flatten().chain(&amendment.except).chain(&amendment.also);
    if named.clone().count() > MAX_COMETS {
        return Err(PluginFailure::too_large(format!("named more than {MAX_COMETS} comets for one message")));
    }
    named.into_iter().try_for_each(|comet| name(comet, "comet address"))?;
    if amendment.once.len() > MAX_GUARDS {
        let asked = amendment.once.len();
        return Err(PluginFailure::too_large(format!("asked for {asked} guards; at most {MAX_GUARDS}")));
    }
    amendment.once.iter().try_for_each(check_guard)
}

fn check_guard(once: &Once) -> Result<(), PluginFailure> {
    check_length(&once.key, "guard key", MAX_GUARD_KEY)?;
    if once.ttl_ms == 0 {
        return Err(PluginFailure::bad_answer("a guard with a ttl of 0"));
    }
    Ok(())
}

/// Whether a text is a valid name.
///
/// # Errors
/// When it is empty or too long.
pub(crate) fn name(text: &str, what: &str) -> Result<(), PluginFailure> {
    check_length(text, what, MAX_NAME)
}

fn check_length(text: &str, what: &str, most: usize) -> Result<(), PluginFailure> {
    let why = || format!("a {what} of {} bytes; 1 to {most} are allowed", text.len());
    match text.len() {
        0 => Err(PluginFailure::bad_answer(why())),
        length if length > most => Err(PluginFailure::too_large(why())),
        _ => Ok(()),
    }
}

/// Applies a checked amendment.
fn amend(amendment: Amendment, filtered: &mut FilteredMessage, by: &PluginVersion, named_by: NamedBy) {
    let mut amended = Vec::new();
    if let Some(body) = amendment.body {
        filtered.message.body = body.into();
        amended.push(MessagePart::Body);
    }
    if let Some(operation) = amendment.operation {
        filtered.message.operation = operation;
        amended.push(MessagePart::Operation);
    }
    if let Some(room) = amendment.room {
        filtered.message.audience = Audience::Room(room.into());
        amended.push(MessagePart::Room);
    }
    if let (Some(new), Audience::Keys { keys, .. }) = (amendment.keys, &mut filtered.message.audience) {
        *keys = new.into_iter().map(Arc::from).collect();
        amended.push(MessagePart::Keys);
    }
    if override_comets(filtered, amendment.only, amendment.except, (amendment.also, named_by)) {
        amended.push(MessagePart::Comets);
    }
    if !amendment.once.is_empty() {
        amended.push(MessagePart::Guards);
    }
    for once in amendment.once {
        let key = format!("{}:{}", by.name, once.key);
        let ttl = Duration::from_millis(once.ttl_ms);
        filtered.guards.push(Guard { key, ttl, by: by.clone() });
    }
    if !amended.is_empty() {
        filtered.note(by, Effect::Amended(amended));
    }
}

/// Combines what several policies say about comets: a comet has to be in every `only`.
fn override_comets(
    filtered: &mut FilteredMessage,
    only: Option<Vec<String>>,
    except: Vec<String>,
    (also, named_by): (Vec<String>, NamedBy),
) -> bool {
    let anything = only.is_some() || !except.is_empty() || !also.is_empty();
    let overrides = &mut filtered.overrides;
    if let Some(only) = only {
        let mut wanted = addresses(only);
        if let Some(earlier) = &overrides.only {
            wanted.retain(|comet| earlier.contains(comet));
        }
        overrides.only = Some(wanted);
    }
    add_new(&mut overrides.except, addresses(except));
    let also = addresses(also);
    if !named_by.is_limited_to_known() {
        add_new(&mut overrides.trusted, also.clone());
    }
    add_new(&mut overrides.also, also);
    anything
}

fn addresses(texts: Vec<String>) -> Vec<CometAddr> {
    let mut addresses = Vec::with_capacity(texts.len());
    add_new(&mut addresses, texts.into_iter().map(CometAddr::from).collect());
    addresses
}

fn add_new(known: &mut Vec<CometAddr>, more: Vec<CometAddr>) {
    for comet in more {
        if !known.contains(&comet) {
            known.push(comet);
        }
    }
}

/// A disposition; `None` when the plugin has no opinion.
///
/// # Errors
/// When it names no channel, or has a retention of 0.
pub(crate) fn disposition(answer: offline::Disposition) -> Result<Option<Disposition>, PluginFailure> {
    Ok(match answer {
        offline::Disposition::Pass => None,
        offline::Disposition::Drop => Some(Disposition::Drop),
        offline::Disposition::Store(Some(0)) => {
            return Err(PluginFailure::bad_answer("stores for 0 seconds; use `drop`"));
        }
        offline::Disposition::Store(seconds) => {
            Some(Disposition::Store { retention: seconds.map(Duration::from_secs) })
        }
        offline::Disposition::Notify(channel) => {
            name(&channel, "channel")?;
            Some(Disposition::Notify { channel })
        }
    })
}
