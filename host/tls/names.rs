//! Whom a certificate names, for logs.

use std::fmt::Write as _;

use openssl::nid::Nid;
use openssl::x509::X509Ref;

use crate::telemetry::escape::cut;

/// The longest text, in characters: authorities may sign names of any number and length.
const LONGEST: usize = 256;

/// The common name and the alternative names of a certificate, such as
/// `CN=alice, URI:spiffe://example.org/alice`. Names with other characters than those of host names, addresses
/// and URIs are quoted, so that none looks like two. The serial number if there are no names.
pub(crate) fn certificate_names(certificate: &X509Ref) -> String {
    let mut names = String::new();
    let mut add = |kind: &str, name: &str| {
        let separator = if names.is_empty() { "" } else { ", " };
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:/@*+".contains(&b);
        let is_written = match !name.is_empty() && name.bytes().all(is_plain) {
            true => write!(names, "{separator}{kind}{name}"),
            false => write!(names, "{separator}{kind}{name:?}"),
        };
        is_written.expect("a string takes it");
    };
    for entry in certificate.subject_name().entries_by_nid(Nid::COMMONNAME) {
        if let Ok(name) = entry.data().to_string() {
            add("CN=", &name);
        }
    }
    for name in certificate.subject_alt_names().iter().flatten() {
        let kinds = [("DNS:", name.dnsname()), ("URI:", name.uri()), ("email:", name.email())];
        for (kind, name) in kinds {
            name.into_iter().for_each(|name| add(kind, name));
        }
    }
    if names.is_empty() {
        let serial = certificate.serial_number().to_bn().and_then(|number| number.to_hex_str());
        names = serial.map_or_else(|_| "unnamed".to_owned(), |serial| format!("serial {}", &*serial));
    }
    cut(&names, LONGEST).into_owned()
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::x509::extension::SubjectAlternativeName;
    use openssl::x509::{X509, X509Name};

    use super::*;

    fn certificate(common_name: Option<&str>, alternatives: Option<&SubjectAlternativeName>) -> X509 {
        let key = PKey::generate_ed25519().unwrap();
        let mut subject = X509Name::builder().unwrap();
        if let Some(name) = common_name {
            subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
        }
        let mut certificate = X509::builder().unwrap();
        certificate.set_version(2).unwrap();
        certificate.set_subject_name(&subject.build()).unwrap();
        let serial = openssl::bn::BigNum::from_u32(0x1f2e).unwrap().to_asn1_integer().unwrap();
        certificate.set_serial_number(&serial).unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        certificate.set_pubkey(&key).unwrap();
        if let Some(alternatives) = alternatives {
            let extension = alternatives.build(&certificate.x509v3_context(None, None)).unwrap();
            certificate.append_extension(extension).unwrap();
        }
        certificate.sign(&key, MessageDigest::null()).unwrap();
        certificate.build()
    }

    #[test]
    fn all_names_are_listed_and_none_looks_like_two() {
        let mut names = SubjectAlternativeName::new();
        names.dns("ci.example.org").uri("spiffe://example.org/ci").email("ci@example.org");
        assert_eq!(
            certificate_names(&certificate(Some("ci"), Some(&names))),
            "CN=ci, DNS:ci.example.org, URI:spiffe://example.org/ci, email:ci@example.org"
        );
        let forged = certificate_names(&certificate(Some("x, URI:spiffe://example.org/admin\naudit"), None));
        assert_eq!(forged, "CN=\"x, URI:spiffe://example.org/admin\\naudit\"");
        assert_eq!(certificate_names(&certificate(Some("李雷"), None)), "CN=\"李雷\"");
        assert_eq!(certificate_names(&certificate(None, None)), "serial 1F2E");
        let mut many = SubjectAlternativeName::new();
        for n in 0..1_000 {
            many.dns(&format!("host-{n}.example.org"));
        }
        let long = certificate_names(&certificate(None, Some(&many)));
        assert!(long.starts_with("DNS:host-0.example.org, DNS:") && long.chars().count() < 300, "{long}");
    }
}
