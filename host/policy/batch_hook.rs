//! The hooks that see the messages of a batch. Pure.

/// A hook that sees batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchHook {
    Filter,
    Retention,
}
