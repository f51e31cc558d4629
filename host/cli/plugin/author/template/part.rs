//! The part of a new project that belongs to one hook.

/// The part of a project that belongs to one hook.
pub(super) struct TemplatePart {
    /// The trait of the SDK.
    pub(super) hook: &'static str,
    /// Fields of the configuration struct.
    pub(super) fields: &'static str,
    /// The configuration as TOML.
    pub(super) config: &'static str,
    /// What the policy does, in one sentence.
    pub(super) does: &'static str,
    /// The trait's implementation, for `NAME`.
    pub(super) code: &'static str,
    /// Its tests; `policy()` creates one with the configuration above.
    pub(super) tests: &'static str,
    /// What the tests import from `halley_plugin::testing`.
    pub(super) uses: &'static [&'static str],
    pub(super) cases: &'static str,
    /// Input for `halley plugin run`.
    pub(super) questions: &'static str,
}
