//! What compiling one plugin may take, and why it came to no code.

use std::time::Duration;

use bytesize::ByteSize;

use crate::wasm::engine::EngineConfig;

/// How much longer than its time of the processor it may take by the clock: the machine may be busy.
pub(super) const PATIENCE: u32 = 4;

/// What compiling one plugin may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// The memory of the process that compiles.
    pub memory: ByteSize,
    /// Its time of the processor. By the clock it may take four times that.
    pub timeout: Duration,
}

impl Default for CompileLimits {
    /// Three times the memory and ten times the time of the largest components of the languages with
    /// a guide: those of Python (18 MB) and JavaScript (12 MB) take 350 MB and 25 s.
    fn default() -> Self {
        Self { memory: ByteSize::gib(1), timeout: Duration::from_secs(300) }
    }
}

/// Why there is no code: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotCompiled {
    /// It is not valid, or needs what is off.
    Invalid(String),
    /// It ran into a limit, or ended the compiler. Marked where there is a folder for that.
    Limited(String),
    /// Not the plugin's doing: another attempt may come further.
    Interrupted(String),
}

impl NotCompiled {
    /// The reason.
    pub(crate) fn into_reason(self) -> String {
        match self {
            Self::Invalid(why) | Self::Limited(why) | Self::Interrupted(why) => why,
        }
    }
}

/// What the compiler says, with what mends it.
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
