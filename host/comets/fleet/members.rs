//! Which comets the fleet has: created when they are named or called, evicted, retired, forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Fleet;
use crate::comets::access::{DialGate, NamerTrust};
use crate::comets::channel::Dialer;
use crate::comets::comet::Comet;
use crate::comets::comet_table::{CometTable, TableFull};
use crate::comets::node_list::NodeList;
use crate::comets::source::Source;
use crate::comets::state::CometState;
use crate::comets::{CallOutcome, CallRequest};
use crate::message::{CometAddr, InvalidAddress, NamedBy};
use crate::time::now_ms;

/// How long a comet may take to answer Hello; at most half of the deadline of a call, which waits for it.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no comet for an address.
#[derive(Debug, thiserror::Error)]
enum CometUnavailable {
    #[error("the gateway is stopping")]
    Stopping,
    #[error(transparent)]
    Full(#[from] TableFull),
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    #[error("{0}; map server names in [comets] addresses")]
    Name(InvalidAddress),
}

impl Fleet {
    /// Sends to a comet that is created for it, if it may be called.
    pub(super) fn send_to_new(&self, request: CallRequest) -> Result<(), CallRequest> {
        let (comet, named_by) = (&request.comet, request.named_by);
        if comet.address().is_ok()
            && let Err(refused) = self.admit(comet, named_by)
        {
            self.access.note(&refused, named_by);
            request.tell(CallOutcome::Unreachable(refused.to_string()));
            return Ok(());
        }
        let source = if named_by == NamedBy::Directory { Source::Directory } else { Source::Named };
        let learned = match comet.address() {
            Err(error) => Err(CometUnavailable::Name(error)),
            Ok(_) => self.get_or_create(comet, source),
        };
        match learned {
            Ok((_lock, comet)) => {
                if source == Source::Directory {
                    comet.state.note_named(now_ms());
                }
                comet.send(request)
            }
            Err(why) => {
                let why = why.to_string();
                self.log_throttled(
                    &why,
                    "cannot send messages to a comet; their recipients go to the offline policy",
                );
                request.tell(CallOutcome::Unreachable(why));
                Ok(())
            }
        }
    }

    /// Adds a comet that an entry of the directory named, or raises its source to `Directory`.
    pub(super) fn add_from_directory(&self, address: &CometAddr, at_ms: u64) {
        if address.address().is_err() {
            return;
        }
        if let Err(refused) = self.access.check_comet(NamerTrust::Directory, address) {
            return self.access.note(&refused, NamedBy::Directory);
        }
        match self.get_or_create(address, Source::Directory) {
            Ok((mut known, comet)) => {
                known.forgotten.remove(address);
                comet.state.note_named(at_ms);
                if matches!(comet.state.source(), Source::Named | Source::Retired) {
                    comet.state.set_source(Source::Directory);
                }
                drop(known);
                self.sharing.note_change();
            }
            Err(why) => self.log_throttled(&why.to_string(), "a comet in the directory gets no broadcasts"),
        }
    }

    /// The comet at an address, created if needed, with the lock that keeps it from being forgotten
    /// before it is used.
    fn get_or_create(
        &self,
        address: &CometAddr,
        source: Source,
    ) -> Result<(parking_lot::RwLockWriteGuard<'_, CometTable>, Arc<Comet>), CometUnavailable> {
        let mut known = self.known.write();
        if known.closed {
            return Err(CometUnavailable::Stopping);
        }
        let comet = match known.comets.get(address) {
            Some(comet) if !comet.is_dead() => Arc::clone(comet),
            _ => {
                let gone = known.make_room(source, &self.limits).inspect_err(|full| {
                    let warning = format!("new comets cannot be reached: {full}");
                    self.capacity_warning.note(warning, Instant::now());
                })?;
                if let Some(gone) = gone {
                    debug!(comet = %gone.state.address, "a comet was evicted for another one");
                    gone.state.evict();
                    self.metrics.forget(&gone.state.address);
                }
                self.create_comet(&mut known, address.clone(), source)?
            }
        };
        Ok((known, comet))
    }

    fn create_comet(
        &self,
        known: &mut CometTable,
        address: CometAddr,
        source: Source,
    ) -> Result<Arc<Comet>, CometUnavailable> {
        let shortage = Arc::clone(&self.shortage);
        let state = CometState::new(address.clone(), source, self.metrics.of(&address), shortage);
        let state = Arc::new(state);
        let table = Arc::downgrade(&self.known);
        let is_known =
            move |comet: &CometAddr| table.upgrade().is_some_and(|table| table.read().has_trusted(comet));
        let gate = DialGate::new(Arc::clone(&self.access), Arc::clone(&state), Arc::new(is_known));
        let welcome_timeout = WELCOME_TIMEOUT.min(self.timing.request_timeout / 2);
        let dialer =
            Dialer::new(&address, self.config.connect_timeout, welcome_timeout, gate, Some(&self.tls))?;
        let (comet, task) = Comet::new(state, dialer, &self.config, self.timing);
        self.tasks.spawn_on(task, &self.runtime);
        debug!(comet = %address, ?source, "a new comet");
        let comet = Arc::new(comet);
        known.comets.insert(address, Arc::clone(&comet));
        Ok(comet)
    }

    /// Applies the operator's current list of comets.
    pub(in crate::comets) fn set_nodes(&self, nodes: &NodeList) {
        let mut known = self.known.write();
        if known.closed {
            return;
        }
        let mut wanted: HashMap<CometAddr, Source> = HashMap::new();
        for (address, source) in nodes.comets() {
            wanted.entry(address).or_insert(source);
        }
        for comet in known.comets.values() {
            let state = &comet.state;
            if state.source().is_configured() && !wanted.contains_key(&state.address) {
                state.retire(now_ms());
            }
        }
        for (address, source) in wanted {
            if let Some(comet) = known.comets.get(&address) {
                comet.state.set_source(source);
            } else if let Err(error) = self.create_comet(&mut known, address, source) {
                warn!(%error, "cannot use a configured comet");
            }
        }
    }

    /// Forgets expired comets.
    pub(super) fn evict_idle(&self) {
        let over = self.known.write().evict_idle(&self.limits, now_ms());
        for comet in over {
            debug!(comet = %comet.state.address, "an idle comet was forgotten");
            self.metrics.forget(&comet.state.address);
        }
    }
}
