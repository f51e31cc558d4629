//! Serves HTTP within limits: for the admin listener and the API.
//!
//! # Layout
//!
//! - `listener`, `peer`: sources of connections, and the identity of the peer.
//! - `serve`, `connections`, `activity`, `response_budget`: HTTP/1, and HTTP/2 where it is wanted, over a
//!   bounded number of connections, each with deadlines; a bounded number of unread response bytes.
//! - `host`, `token`, `auth_rate_limit`: allowed hosts, bearer tokens, and the rate limit on failed ones.
//! - `concurrency`: limits how many expensive requests run.
//! - `tls`: TLS, with files that are read again when they change.
//! - `refusals`, `response`: counts and logs refused requests; error responses.
//!
//! It does not know what is served.

pub(crate) mod activity;
mod auth_rate_limit;
pub(crate) mod concurrency;
mod connections;
pub(crate) mod denied;
pub(crate) mod host;
pub(crate) mod listener;
pub(crate) mod peer;
pub(crate) mod refusals;
pub(crate) mod response;
mod response_budget;
pub(crate) mod serve;
pub(crate) mod tls;
pub(crate) mod token;
