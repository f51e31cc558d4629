//! Limits on compiling one plugin, and the errors of compilation.

use crate::wasm::engine::EngineConfig;
use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

/// The limit on elapsed time as a multiple of the limit on CPU time: the machine may be busy.
pub(super) const WALL_CLOCK_FACTOR: u32 = 4;

/// Limits on compiling one plugin. By default three times the memory and ten times the time of the largest
/// components of the supported languages: Python (18 MB) and JavaScript (12 MB) take 350 MB and 25 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SmartDefault)]
pub struct CompileLimits {
    /// The memory of the process that compiles.
    #[default(ByteSize::gib(1))]
    pub memory: ByteSize,
    /// Its CPU time. The limit on elapsed time is four times as high.
    #[default(Duration::from_secs(300))]
    pub timeout: Duration,
}

/// Why there is no code: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    /// It is not valid, or needs a feature that is off.
    #[error("{0}")]
    Invalid(String),
    /// It exceeded a limit, or crashed the compiler. Marked if there is a directory for marks.
    #[error("{0}")]
    Limited(String),
    /// Not the plugin's fault: another attempt may succeed.
    #[error("{0}")]
    Interrupted(String),
}

impl CompileError {
    /// For a file that no compiler accepts.
    pub(crate) fn invalid(why: impl ToString) -> Self {
        Self::Invalid(why.to_string())
    }
}

/// The compiler's error with its remedy.
pub(super) fn invalid(why: &str, config: &EngineConfig, component: &[u8]) -> String {
    let missing: Vec<_> =
        config.missing(component).iter().map(|feature| format!("`{}`", feature.as_str())).collect();
    let remedy = if missing.is_empty() {
        "is the file complete?".to_owned()
    } else {
        let missing = missing.join(", ");
        format!(
            "it needs features that are off: add {missing} to [policies.wasm] features, or build it without"
        )
    };
    format!("does not compile: {why}; {remedy}")
}
