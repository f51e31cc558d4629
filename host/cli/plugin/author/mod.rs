//! `halley plugin new`, `build`, `inspect`, `test`, `run`, `bench` and `dev`: from an idea to a
//! running policy. None of them needs a gateway, Kafka or Redis; `dev` can push into a gateway.
//!
//! - `template`, `language` and `sdk`: what a new project is made of. `project`: where a policy is, and how it
//!   is built.
//! - `question` and `answer`: what a policy is asked and what it says, as people write and read
//!   them; `subject`: a policy that is asked; `cases` and `expect`: questions with the answers that
//!   they have to get.
//! - One file for each command.

mod answer;
pub(super) mod bench;
pub(super) mod build;
mod cases;
pub(super) mod dev;
mod expect;
pub(super) mod inspect;
mod language;
pub(super) mod new;
mod project;
mod question;
pub(super) mod run;
mod sdk;
mod subject;
mod template;
pub(super) mod test;
pub(super) mod wit;
