//! Until when certificates are valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::x509::X509Ref;

use crate::tls::pem::{self, PemError};

/// A certificate that is valid for less than this should be renewed now.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// How long a certificate is valid.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
pub(crate) enum Validity {
    /// Until then.
    #[display("valid until {}", format_rfc3339_seconds(*_0))]
    Valid(SystemTime),
    /// Until then, which is within 30 days.
    #[display("expires at {}, within 30 days; renew it", format_rfc3339_seconds(*_0))]
    ExpiresSoon(SystemTime),
    /// It has expired.
    #[display("expired at {}; renew it", format_rfc3339_seconds(*_0))]
    Expired(SystemTime),
    /// It is not valid before then.
    #[display("not valid before {}; check the clock of this machine", format_rfc3339_seconds(*_0))]
    NotYet(SystemTime),
}

impl Validity {
    /// That of the certificate that expires first in a file. `key` names the file in errors.
    ///
    /// # Errors
    /// If the file has no certificate.
    pub(crate) fn of_pem(key: &'static str, pem: &str, now: SystemTime) -> Result<Self, PemError> {
        let all = Self::all(key, pem, now)?;
        Ok(all.into_iter().max_by_key(Self::urgency).unwrap_or(Self::Expired(UNIX_EPOCH)))
    }

    /// That of the authorities of a file: of the one that is valid longest, since one is enough.
    ///
    /// # Errors
    /// If the file has no certificate.
    pub(crate) fn of_authorities(key: &'static str, pem: &str, now: SystemTime) -> Result<Self, PemError> {
        let all = Self::all(key, pem, now)?;
        Ok(all.into_iter().min_by_key(Self::urgency).unwrap_or(Self::Expired(UNIX_EPOCH)))
    }

    fn all(key: &'static str, pem: &str, now: SystemTime) -> Result<Vec<Self>, PemError> {
        pem::certificates(key, pem)?.iter().map(|certificate| Self::of(certificate, now)).collect()
    }

    /// That of this certificate.
    pub(crate) fn of(certificate: &X509Ref, now: SystemTime) -> Result<Self, PemError> {
        let (from, until) = (time_of(certificate.not_before())?, time_of(certificate.not_after())?);
        Ok(match () {
            () if now < from => Self::NotYet(from),
            () if until <= now => Self::Expired(until),
            () if until < now + SOON => Self::ExpiresSoon(until),
            () => Self::Valid(until),
        })
    }

    /// Whether peers accept it now.
    pub(crate) fn is_valid(&self) -> bool {
        matches!(self, Self::Valid(_) | Self::ExpiresSoon(_))
    }

    /// What is wrong or will be soon; `None` for the next 30 days.
    pub(crate) fn problem(&self) -> Option<String> {
        (!matches!(self, Self::Valid(_))).then(|| self.to_string())
    }

    /// The worst first when compared; among equals the one that ends first.
    fn urgency(&self) -> (u8, std::cmp::Reverse<SystemTime>) {
        let (rank, at) = match self {
            Self::Valid(at) => (0, at),
            Self::ExpiresSoon(at) => (1, at),
            Self::NotYet(at) => (2, at),
            Self::Expired(at) => (3, at),
        };
        (rank, std::cmp::Reverse(*at))
    }
}

/// When this certificate expires, in seconds since 1970.
pub(crate) fn expiry(certificate: &X509Ref) -> Option<u64> {
    let until = time_of(certificate.not_after()).ok()?;
    Some(until.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Certificates are valid from 1950 to 9999; times before 1970 count as 1970.
fn time_of(time: &Asn1TimeRef) -> Result<SystemTime, PemError> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    let seconds = i64::from(since.days) * 86_400 + i64::from(since.secs);
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    use super::*;

    const DAY: u64 = 86_400;

    /// A certificate that is valid from and until these days after 2020-01-01.
    fn certificate(from: u64, until: u64) -> String {
        let at = |days: u64| {
            let seconds = start().duration_since(UNIX_EPOCH).unwrap().as_secs() + days * DAY;
            Asn1Time::from_unix(i64::try_from(seconds).unwrap()).unwrap()
        };
        let key = PKey::generate_ed25519().unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_not_before(&at(from)).unwrap();
        builder.set_not_after(&at(until)).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::null()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    }

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_577_836_800)
    }

    fn on_day(days: u64) -> SystemTime {
        start() + Duration::from_secs(days * DAY)
    }

    #[test]
    fn the_certificate_that_ends_first_decides() {
        let (long, short) = (certificate(10, 400), certificate(5, 100));
        let both = format!("{long}{short}");
        for (day, expected) in [
            (7, Validity::NotYet(on_day(10))),
            (20, Validity::Valid(on_day(100))),
            (69, Validity::Valid(on_day(100))),
            (71, Validity::ExpiresSoon(on_day(100))),
            (100, Validity::Expired(on_day(100))),
        ] {
            let found = Validity::of_pem("ca", &both, on_day(day)).unwrap();
            assert_eq!(found, expected, "day {day}");
            assert_eq!(found.is_valid(), (10..100).contains(&day), "day {day}");
            let trusted = Validity::of_authorities("ca", &both, on_day(day)).unwrap();
            assert!(trusted.is_valid(), "day {day}: one of two authorities is enough");
        }
        assert_eq!(Validity::of_pem("ca", &long, on_day(20)).unwrap(), Validity::Valid(on_day(400)));
        let text = Validity::Expired(on_day(0)).to_string();
        assert_eq!(text, "expired at 2020-01-01T00:00:00Z; renew it");
        let none = Validity::of_pem("ca", "nothing", on_day(0)).unwrap_err().to_string();
        assert!(none.contains("the file of `ca` has no certificate"), "{none}");
    }
}
