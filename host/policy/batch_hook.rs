//! The hooks that see the messages of a batch. Pure.

use crate::wasm::metrics::HookKind;

/// A hook that sees batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchHook {
    Filter,
    Retention,
}

impl BatchHook {
    pub(super) fn kind(self) -> HookKind {
        match self {
            Self::Filter => HookKind::Filter,
            Self::Retention => HookKind::Retention,
        }
    }
}
