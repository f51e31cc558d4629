//! What one hook brings into a project.

/// What one hook brings into a project.
pub(super) struct Part {
    /// The trait of the SDK.
    pub(super) hook: &'static str,
    /// Fields of the configuration.
    pub(super) fields: &'static str,
    /// The same, as TOML.
    pub(super) config: &'static str,
    /// What the policy does, in a sentence.
    pub(super) does: &'static str,
    /// The trait's implementation, for `NAME`.
    pub(super) code: &'static str,
    /// Its tests; `policy()` makes one with the configuration above.
    pub(super) tests: &'static str,
    /// What the tests use of `halley_plugin::testing`.
    pub(super) uses: &'static [&'static str],
    pub(super) cases: &'static str,
    /// Lines for `halley plugin run`.
    pub(super) questions: &'static str,
}
