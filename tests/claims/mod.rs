//! Forged records: a producer gains nothing but delivery of its messages.

mod dead_letters;
mod logs;
mod outcomes;
mod proofs;
