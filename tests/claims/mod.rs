//! Forged records: a producer gains nothing but delivery of its messages.

mod letters;
mod logs;
mod outcomes;
mod proofs;
