//! TLS to a running gateway: whom the commands trust, and the certificate that they show.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use crate::cli::OrUsage as _;
use crate::files::{self, ReadError};
use crate::tls::pem;

/// The maximum size of a file, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;

/// Options for a gateway whose address begins with `https://`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ClientTlsArgs {
    /// The certificates (PEM) of the authorities that may certify the gateway, for an address that
    /// begins with `https://`. Default: those that the system trusts.
    #[arg(long, value_name = "FILE", env = "HALLEY_GATEWAY_CA")]
    ca: Option<PathBuf>,
    /// A certificate with its chain (PEM), for a gateway that requires one (`client_ca`).
    #[arg(long, value_name = "FILE", env = "HALLEY_GATEWAY_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key of --cert (PEM), which no other user may read.
    #[arg(long, value_name = "FILE", env = "HALLEY_GATEWAY_KEY", requires = "cert")]
    key: Option<PathBuf>,
}

impl ClientTlsArgs {
    /// Whether any of them is given.
    pub(super) fn is_given(&self) -> bool {
        self.ca.is_some() || self.cert.is_some()
    }

    /// An HTTP client, which uses no proxy.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what it should be.
    pub(super) fn client(&self) -> anyhow::Result<ClientBuilder> {
        let mut client = Client::builder().no_proxy();
        if let Some(ca) = &self.ca {
            let pem = read("--ca", ca, false).or_usage()?;
            pem::certificates("--ca", &pem).or_usage()?;
            client = client.tls_certs_only(Certificate::from_pem_bundle(pem.as_bytes())?);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let (cert, key) = (read("--cert", cert, false).or_usage()?, read("--key", key, true).or_usage()?);
            pem::check_identity("--cert", &cert, "--key", &key).or_usage()?;
            let key = pem::as_pkcs8("--key", &key).or_usage()?;
            client = client.identity(Identity::from_pkcs8_pem(cert.as_bytes(), &key)?);
        }
        Ok(client)
    }
}

fn read(option: &str, path: &Path, is_secret: bool) -> anyhow::Result<String> {
    let read = if is_secret { files::read_secret } else { files::read_text };
    let read: Result<String, ReadError> = read(path, LONGEST_FILE);
    read.map_err(|why| anyhow::anyhow!("{option} {} {why}", path.display()))
}
