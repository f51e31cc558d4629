//! The configured certificates: whether they can be used, whether their keys belong to them, and until
//! when they are valid.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::anyhow;
use reqwest::Url;

use crate::cli::check::result::CheckResult;
use crate::config::Config;
use crate::files;
use crate::mistake::{Mistake, mistake};
use crate::tls::expiry::Validity;
use crate::tls::{ListenerConfig, pem};

/// Maximum size of a file, in bytes.
const LONGEST_FILE: u64 = 4 * 1024 * 1024;

/// Certificates that the configuration names.
struct Configured {
    key: &'static str,
    place: Place,
    purpose: Purpose,
}

enum Place {
    File(PathBuf),
    /// In the configuration itself.
    Text(String),
}

enum Purpose {
    /// Authorities that are trusted: one of them is enough.
    Authorities,
    /// The process's own certificate with its chain; and its private key, with the key that names it.
    Own(Option<(&'static str, PathBuf)>),
}

/// What would prevent a start.
pub(super) fn problems(config: &Config) -> Vec<Mistake> {
    let wrong = |configured: Configured| {
        let (key, why) = (configured.key, configured.validity().err()?);
        Some(mistake!("{key}", "{why:#}"))
    };
    of_sections(config).into_iter().filter_map(wrong).collect()
}

/// Until when every certificate is valid.
pub(super) fn all(config: &Config) -> Vec<CheckResult> {
    let of_clients = of_kafka(config).into_iter().chain(of_archive(config));
    of_sections(config).into_iter().chain(of_clients).map(Configured::result).collect()
}

/// Those of `[comets.tls]`, `[admin.tls]` and `[api.tls]`.
fn of_sections(config: &Config) -> Vec<Configured> {
    let (comets, admin, api) = (&config.comets.tls, &config.admin.tls, &config.api.tls);
    let own = |[key, private]: [&'static str; 2], certificate: &Option<PathBuf>, file: &Option<PathBuf>| {
        // One without the other is a mistake that is named already.
        let private = (private, file.clone()?);
        file_of(key, certificate.as_deref(), Purpose::Own(Some(private)))
    };
    let trusted = |key, file: &Option<PathBuf>| file_of(key, file.as_deref(), Purpose::Authorities);
    let clients = |key, tls: &ListenerConfig| tls.certificate.as_ref().and(trusted(key, &tls.client_ca));
    let all = [
        trusted("comets.tls.ca", &comets.ca),
        own(["comets.tls.certificate", "comets.tls.key"], &comets.certificate, &comets.key),
        own(["admin.tls.certificate", "admin.tls.key"], &admin.certificate, &admin.key),
        clients("admin.tls.client_ca", admin),
        own(["api.tls.certificate", "api.tls.key"], &api.certificate, &api.key),
        clients("api.tls.client_ca", api),
    ];
    all.into_iter().flatten().collect()
}

/// Those of `[kafka.properties]`. librdkafka itself reports what it cannot use.
fn of_kafka(config: &Config) -> Vec<Configured> {
    let property = |name: &str| config.kafka.properties.get(name);
    let text = |name: &str, key, purpose| {
        property(name).map(|pem| Configured { key, place: Place::Text(pem.clone()), purpose })
    };
    // It takes a directory as well, or `probe`.
    let bundle = property("ssl.ca.location").map(Path::new).filter(|path| path.is_file());
    let certificate = property("ssl.certificate.location").map(Path::new);
    let all = [
        file_of("kafka.properties ssl.ca.location", bundle, Purpose::Authorities),
        file_of("kafka.properties ssl.certificate.location", certificate, Purpose::Own(None)),
        text("ssl.ca.pem", "kafka.properties ssl.ca.pem", Purpose::Authorities),
        text("ssl.certificate.pem", "kafka.properties ssl.certificate.pem", Purpose::Own(None)),
    ];
    all.into_iter().flatten().collect()
}

/// Those that the URL of the archive names, as sqlx reads it.
fn of_archive(config: &Config) -> Vec<Configured> {
    let Ok(url) = Url::parse(&config.archive.url) else { return Vec::new() };
    let parameter = |names: [&str; 2]| {
        let found = url.query_pairs().find(|(name, _)| names.contains(&&**name));
        found.map(|(_, path)| PathBuf::from(path.into_owned()))
    };
    let (ca, certificate) = (parameter(["ssl-ca", "sslca"]), parameter(["ssl-cert", "sslcert"]));
    let all = [
        file_of("archive.url ssl-ca", ca.as_deref(), Purpose::Authorities),
        file_of("archive.url ssl-cert", certificate.as_deref(), Purpose::Own(None)),
    ];
    all.into_iter().flatten().collect()
}

fn file_of(key: &'static str, file: Option<&Path>, purpose: Purpose) -> Option<Configured> {
    Some(Configured { key, place: Place::File(file?.to_owned()), purpose })
}

impl Configured {
    /// Until when they are valid.
    ///
    /// # Errors
    /// If they cannot be used: the second half of a sentence that begins with the key.
    fn validity(&self) -> anyhow::Result<Validity> {
        let now = SystemTime::now();
        let read;
        let pem = match &self.place {
            Place::Text(pem) => pem,
            Place::File(file) => {
                read = files::read_text(file, LONGEST_FILE)
                    .map_err(|why| anyhow!("{} {why}", file.display()))?;
                &read
            }
        };
        let unusable = |why: pem::PemError| match &self.place {
            Place::Text(_) => anyhow!("cannot be used: {why}"),
            Place::File(file) => anyhow!("{} cannot be used: {why}", file.display()),
        };
        let Purpose::Own(private) = &self.purpose else {
            return Validity::of_authorities(self.key, pem, now).map_err(unusable);
        };
        let validity = Validity::of_pem(self.key, pem, now).map_err(unusable)?;
        if let Some((key, file)) = private {
            let secret = files::read_secret(file, LONGEST_FILE);
            let secret = secret.map_err(|why| anyhow!("needs `{key}`: {} {why}", file.display()))?;
            pem::check_identity(self.key, pem, key, &secret).map_err(unusable)?;
        }
        Ok(validity)
    }

    fn result(self) -> CheckResult {
        let subject = match &self.place {
            Place::File(file) => format!("certificate {} ({})", file.display(), self.key),
            Place::Text(_) => format!("certificate {}", self.key),
        };
        let (ok, warning, text) = match self.validity() {
            Ok(validity @ Validity::ExpiresSoon(_)) => (true, true, validity.to_string()),
            Ok(validity) => (validity.is_valid(), false, validity.to_string()),
            Err(error) => (false, false, format!("{error:#}")),
        };
        CheckResult { subject, ok, warning, text }
    }
}
