//! What everything here that speaks TLS shares, through the system's OpenSSL.
//!
//! - `listener`: the keys of a section that is served over TLS.
//! - `pem`: certificates, private keys and authorities in PEM, as parts of a context.
//! - `shown`: the certificate that a server shows.
//! - `names`: whom certificates name. `expiry`: until when certificates are valid.
//!
//! It opens no connections. Callers read the files, most of them with [`reloaded`](crate::reloaded).

pub(crate) mod expiry;
mod listener;
pub(crate) mod names;
pub(crate) mod pem;
mod shown;

pub use listener::ListenerConfig;
pub(crate) use shown::shown_certificate;
