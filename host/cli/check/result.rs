//! What `halley check --connect` found.

/// The result of one probe.
#[derive(serde::Serialize)]
pub(super) struct CheckResult {
    /// What was probed.
    pub(super) subject: String,
    /// Whether it is usable.
    pub(super) ok: bool,
    /// Whether it is usable for now only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) warning: bool,
    /// What was found, or what is wrong and how to fix it.
    pub(super) text: String,
}
