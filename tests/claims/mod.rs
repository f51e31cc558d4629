//! What records may claim, and what logs show: whoever can write to a topic gets no more by it
//! than to have messages delivered.

mod letters;
mod logs;
mod outcomes;
mod proofs;
