//! `halley plugin new`, `build`, `inspect`, `test`, `run`, `bench`, `dev` and `publish`: from an idea to a
//! running policy. None of them needs a gateway, Kafka or Redis; `dev` can push to a gateway.
//!
//! - `template`, `language` and `sdk`: the contents of a new project. `project`: finds and builds a
//!   policy.
//! - `question` and `answer`: the input of a policy and its answers, as people write and read them;
//!   `plugin_under_test`: the policy under test; `cases` and `expect`: inputs with the expected
//!   answers.
//! - One file per command.

mod answer;
pub(super) mod bench;
pub(super) mod build;
mod cases;
pub(super) mod dev;
mod expect;
pub(super) mod inspect;
mod language;
pub(super) mod new;
mod plugin_under_test;
mod project;
pub(super) mod publish;
mod question;
pub(super) mod run;
mod sdk;
mod template;
pub(super) mod test;
pub(super) mod wit;
