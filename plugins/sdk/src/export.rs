//! Exports a policy as a component: [`export!`](crate::export!), and the slot where an instance keeps
//! its policy.

use std::cell::RefCell;

use crate::batch::{self, Messages};
use crate::bindings::filter_columns::exports::halley::policy::filter_columns;
use crate::bindings::grouping::exports::halley::policy::grouping as records;
use crate::bindings::grouping_columns::exports::halley::policy::grouping_columns as columns;
use crate::bindings::retention::exports::halley::policy::retention as retained;
use crate::bindings::{filter, lifecycle, offline, settings};
use crate::policy::from_json;
use crate::room::{self, Connections, Room};
use crate::{Filter, Grouping, Message, Offline, Policy, Retention, Settings, Source, retention};

/// Exports a policy with the hooks that it implements: `export!(MyPolicy: Filter)`,
/// `export!(MyPolicy: Filter, Offline)`. Use it once per crate.
///
/// `Settings` in the list exports the description of the configuration: see [`Settings`](crate::Settings).
///
/// The gateway sees exactly these hooks. In native builds this only checks that they are implemented,
/// so that the crate's tests need no WebAssembly.
#[macro_export]
macro_rules! export {
    ($policy:ty: $($hook:ident),+ $(,)?) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static SLOT: $crate::__private::Slot<$policy> = const { $crate::__private::Slot::empty() };
            }

            struct Exported;

            impl $crate::__private::Component for Exported {
                type Policy = $policy;

                fn with_slot<R>(body: impl FnOnce(&$crate::__private::Slot<$policy>) -> R) -> R {
                    SLOT.with(body)
                }
            }

            $crate::__private::bindings::lifecycle::export_lifecycle!(
                Exported with_types_in $crate::__private::bindings::lifecycle
            );
            $($crate::__export_hook!($hook);)+
        };

        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            $($crate::__check_hook!($hook, $policy);)+
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    (Filter) => {
        $crate::__private::bindings::filter::export_filter!(
            Exported with_types_in $crate::__private::bindings::filter
        );
        $crate::__private::bindings::filter_columns::export_filter_columns!(
            Exported with_types_in $crate::__private::bindings::filter_columns
        );
    };
    (Retention) => {
        $crate::__private::bindings::retention::export_retention!(
            Exported with_types_in $crate::__private::bindings::retention
        );
    };
    (Grouping) => {
        $crate::__private::bindings::grouping::export_grouping!(
            Exported with_types_in $crate::__private::bindings::grouping
        );
        $crate::__private::bindings::grouping_columns::export_grouping_columns!(
            Exported with_types_in $crate::__private::bindings::grouping_columns
        );
    };
    (Offline) => {
        $crate::__private::bindings::offline::export_offline!(
            Exported with_types_in $crate::__private::bindings::offline
        );
    };
    (Settings) => {
        $crate::__private::bindings::settings::export_settings!(
            Exported with_types_in $crate::__private::bindings::settings
        );
    };
    ($other:ident) => {
        ::std::compile_error!(::std::concat!(
            "no hook `",
            ::std::stringify!($other),
            "`; there are Filter, Retention, Grouping and Offline, and Settings"
        ));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __check_hook {
    (Filter, $policy:ty) => {
        let _ = $crate::__private::has_filter::<$policy>;
    };
    (Retention, $policy:ty) => {
        let _ = $crate::__private::has_retention::<$policy>;
    };
    (Grouping, $policy:ty) => {
        let _ = $crate::__private::has_grouping::<$policy>;
    };
    (Offline, $policy:ty) => {
        let _ = $crate::__private::has_offline::<$policy>;
    };
    (Settings, $policy:ty) => {
        let _ = $crate::__private::has_settings::<$policy>;
    };
    ($other:ident, $policy:ty) => {
        ::std::compile_error!(::std::concat!(
            "no hook `",
            ::std::stringify!($other),
            "`; there are Filter, Retention, Grouping and Offline, and Settings"
        ));
    };
}

/// Compiles for policies with the `filter` hook.
pub const fn has_filter<P: Filter>() {}
/// Compiles for policies with the `retention` hook.
pub const fn has_retention<P: Retention>() {}
/// Compiles for policies with the `grouping` hook.
pub const fn has_grouping<P: Grouping>() {}
/// Compiles for policies with the `offline` hook.
pub const fn has_offline<P: Offline>() {}
/// Compiles for policies whose configuration describes itself.
pub const fn has_settings<P: Policy<Config: Settings>>() {}

/// Where an instance keeps its policy. An instance has one thread and one call at a time.
pub struct Slot<P> {
    policy: RefCell<Option<P>>,
    /// The buffer for a filter's batches.
    messages: Messages,
}

impl<P> Slot<P> {
    /// The state before `init`.
    pub const fn empty() -> Self {
        Self { policy: RefCell::new(None), messages: Messages::empty() }
    }
}

impl<P: Policy> Slot<P> {
    fn init(&self, config: &str) -> Result<(), String> {
        #[cfg(target_family = "wasm")]
        log_panics();
        let policy = from_json(config)?;
        self.policy.replace(Some(policy));
        Ok(())
    }

    /// Runs `body` on the policy. The gateway calls `init` first; otherwise the policy is created
    /// from the host's `config` now.
    fn with<R>(&self, body: impl FnOnce(&mut P) -> R) -> R {
        #[cfg(target_family = "wasm")]
        if self.policy.borrow().is_none() {
            self.init(&crate::host::config()).unwrap_or_else(|refusal| panic!("no policy: {refusal}"));
        }
        body(self.policy.borrow_mut().as_mut().expect("init was called before the first hook"))
    }
}

/// A panic becomes a trap, which has no message: this writes the message to the gateway's log.
#[cfg(target_family = "wasm")]
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| crate::log::error!("{panic}")));
}

/// The adapter that [`export!`](crate::export!) generates for a policy; implements the generated
/// traits.
pub trait Component {
    /// The policy.
    type Policy: Policy;

    /// Lends the instance's slot.
    fn with_slot<R>(body: impl FnOnce(&Slot<Self::Policy>) -> R) -> R;
}

impl<C: Component> lifecycle::exports::halley::policy::lifecycle::Guest for C {
    fn init(config: String) -> Result<(), String> {
        C::with_slot(|slot| slot.init(&config))
    }
}

impl<C> settings::exports::halley::policy::settings::Guest for C
where
    C: Component<Policy: Policy<Config: Settings>>,
{
    fn schema() -> String {
        <<C::Policy as Policy>::Config as Settings>::schema()
    }
}

/// For gateways of version 0.1.0.
impl<C: Component<Policy: Filter>> filter::exports::halley::policy::filter::Guest for C {
    fn filter(source: Source, messages: Vec<Message>) -> Vec<crate::Verdict> {
        C::with_slot(|slot| slot.with(|policy| policy.filter_all(&source, &messages)))
    }
}

/// For all others.
impl<C: Component<Policy: Filter>> filter_columns::Guest for C {
    fn filter(source: Source, batch: filter_columns::Batch) -> Vec<filter_columns::Verdict> {
        let filter = |slot: &Slot<C::Policy>| {
            slot.messages.with(&batch, |messages| slot.with(|policy| policy.filter_all(&source, messages)))
        };
        C::with_slot(filter).into_iter().map(batch::verdict).collect()
    }
}

impl<C: Component<Policy: Retention>> retained::Guest for C {
    fn retain(source: Source, batch: retained::Batch) -> retained::Kept {
        let batch = retention::batch(batch);
        let retain = |slot: &Slot<C::Policy>| {
            slot.messages.with(&batch, |messages| slot.with(|policy| policy.retain_all(&source, messages)))
        };
        retention::kept(&C::with_slot(retain))
    }
}

/// For gateways of version 0.1.0.
impl<C: Component<Policy: Grouping>> records::Guest for C {
    fn regroup(id: String, comets: Vec<String>, connections: Vec<records::Connection>) -> crate::Regrouping {
        regroup::<C>(&id, &comets, &room::from_records(&connections))
    }
}

/// For all others.
impl<C: Component<Policy: Grouping>> columns::Guest for C {
    fn regroup(id: String, comets: Vec<String>, connections: columns::Connections) -> columns::Regrouping {
        room::to_columns(regroup::<C>(&id, &comets, &connections))
    }
}

fn regroup<C: Component<Policy: Grouping>>(
    id: &str,
    comets: &[String],
    connections: &columns::Connections,
) -> crate::Regrouping {
    let room = Room { id, comets, connections: Connections::of(connections) };
    C::with_slot(|slot| slot.with(|policy| policy.regroup(&room)))
}

impl<C: Component<Policy: Offline>> offline::exports::halley::policy::offline::Guest for C {
    fn decide(source: Source, message: Message, absent: Vec<crate::Absent>) -> Vec<crate::Disposition> {
        C::with_slot(|slot| slot.with(|policy| policy.decide_all(&source, &message, &absent)))
    }
}
