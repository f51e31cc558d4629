//! Certificates of the tests' own authorities.

use std::path::Path;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name, X509NameBuilder};

use crate::support::secret;

/// A certificate with its key.
#[derive(Clone)]
pub struct Certificate {
    pub certificate: X509,
    pub key: PKey<Private>,
}

/// From when to when a certificate is valid, in days from now.
pub const VALID: (i64, i64) = (-1, 1);
/// The same for one that nobody has to renew soon.
pub const LONG: (i64, i64) = (-1, 90);
/// The same for one that is not valid any more.
pub const EXPIRED: (i64, i64) = (-3, -1);

impl Certificate {
    /// An authority that certifies itself.
    pub fn authority(name: &str) -> Self {
        Self::authority_for(name, VALID)
    }

    /// The same, for these days.
    pub fn authority_for(name: &str, valid: (i64, i64)) -> Self {
        Self::new(name, None, valid)
    }

    /// A certificate of this authority for a host name.
    pub fn issue(&self, host: &str, valid: (i64, i64)) -> Self {
        Self::new(host, Some(self), valid)
    }

    fn new(name: &str, issuer: Option<&Self>, (from, until): (i64, i64)) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
        let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
        let subject = name_of(name);
        let mut builder = X509::builder().expect("a certificate");
        builder.set_version(2).expect("a version");
        let serial = BigNum::from_u32(fastrand::u32(1..)).and_then(|serial| serial.to_asn1_integer());
        builder.set_serial_number(&serial.expect("a number")).expect("a number");
        builder.set_subject_name(&subject).expect("a name");
        let issuer_name = issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name());
        builder.set_issuer_name(issuer_name).expect("a name");
        builder.set_not_before(&in_days(from)).expect("a time");
        builder.set_not_after(&in_days(until)).expect("a time");
        builder.set_pubkey(&key).expect("a key");
        if issuer.is_none() {
            let authority = BasicConstraints::new().critical().ca().build().expect("an extension");
            builder.append_extension(authority).expect("an extension");
        }
        let context = builder.x509v3_context(issuer.map(|issuer| &*issuer.certificate), None);
        let names = SubjectAlternativeName::new().dns(name).build(&context).expect("an extension");
        builder.append_extension(names).expect("an extension");
        let signer = issuer.map_or(&key, |issuer| &issuer.key);
        builder.sign(signer, MessageDigest::sha256()).expect("a signature");
        Self { certificate: builder.build(), key }
    }

    /// Writes `NAME.pem`, and the key as `NAME.key`, which no other user may read. Both are replaced in
    /// one step each.
    pub fn write(&self, folder: &Path, name: &str) {
        let aside = folder.join("new");
        std::fs::write(&aside, self.certificate.to_pem().expect("PEM")).expect("written");
        std::fs::rename(&aside, folder.join(format!("{name}.pem"))).expect("renamed");
        let key = self.key.private_key_to_pem_pkcs8().expect("PEM");
        secret(&folder.join(format!("{name}.key")), std::str::from_utf8(&key).expect("text"));
    }
}

fn name_of(name: &str) -> X509Name {
    let mut builder = X509NameBuilder::new().expect("a name");
    builder.append_entry_by_text("CN", name).expect("a name");
    builder.build()
}

fn in_days(days: i64) -> Asn1Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Asn1Time::from_unix(now.as_secs().cast_signed() + days * 86_400).expect("a time")
}
