//! Verifies the `halley-` headers of a record. Pure.
//!
//! A client that may write to a topic can write any header. A forged message id or list of comets
//! would change what the gateway does: comets and guards would treat the record as another message.
//! So these headers count only in records that `halley dead-letter redrive` wrote. Such a record has
//! a proof: an HMAC-SHA256 over the topic, all its `halley-` headers, its key and its value, with a
//! key that the gateways of an installation share.
//!
//! A proof does not prevent replay: a client that may read and write the topic can write a proven
//! record to the same topic again.

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::{MESSAGE_ID, REDRIVE_COMETS, REDRIVE_USERS, RawHeader, Record};

/// The header with a redriven record's proof.
pub const PROOF: &str = "halley-proof";

/// The prefix of the gateway's own headers.
const OURS: &[u8] = b"halley-";
/// The prefix of a proof in its header; the version is part of what is proven.
const VERSION: &str = "1:";
/// The size of SHA-256 in bytes, and so of a key and a proof.
const LENGTH: usize = 32;

/// The key that proves redriven records.
#[derive(Clone, derive_more::Debug, derive_more::From)]
#[debug("RedriveKey(..)")]
pub struct RedriveKey([u8; LENGTH]);

impl RedriveKey {
    /// A key of these bytes; `None` unless there are 32.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes, for storage.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value of [`PROOF`] for a record with this content.
    pub fn prove(&self, content: &ProofContent) -> String {
        format!("{VERSION}{}", hex::encode(self.mac(content).finalize().into_bytes()))
    }

    /// Whether the proof was made with this key. Compares in constant time.
    pub fn proves(&self, claimed: &ClaimedProof) -> bool {
        self.mac(&claimed.content).verify_slice(&claimed.proof).is_ok()
    }

    fn mac(&self, ProofContent(digest): &ProofContent) -> Hmac<Sha256> {
        let mac = Hmac::new_from_slice(&self.0).expect("a key may have any length");
        mac.chain_update(b"halley redriven record ").chain_update(VERSION).chain_update(digest)
    }
}

/// A digest of the content that a proof covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofContent([u8; LENGTH]);

impl ProofContent {
    /// The digest of a record in this topic. It covers all headers that begin with `halley-`, in
    /// order, except the proof itself.
    pub fn of<'a>(
        topic: &str,
        headers: impl Iterator<Item = RawHeader<'a>> + Clone,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Self {
        let ours = headers.filter(|(name, _)| name.starts_with(OURS) && *name != PROOF.as_bytes());
        let mut digest = Sha256::new();
        // Every part is prefixed with its length, so the encoding is unambiguous.
        let mut part = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            digest.update(length.to_be_bytes());
            digest.update(bytes.unwrap_or_default());
        };
        part(Some(topic.as_bytes()));
        part(Some(&(ours.clone().count() as u64).to_be_bytes()));
        for (name, value) in ours {
            part(Some(name));
            part(value);
        }
        part(key);
        part(value);
        Self(digest.finalize().into())
    }
}

/// A record's claim to be redriven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedriveClaim {
    /// No claim.
    None,
    /// A claim without a proof.
    Unproven,
    /// A claim with a proof that has to be checked.
    Proof(ClaimedProof),
}

/// A proof, and the content that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedProof {
    content: ProofContent,
    proof: [u8; LENGTH],
}

impl Record {
    /// The record's claim. Costs a look at the header names, and a hash of the record if there is a
    /// proof.
    pub fn claim(&self) -> RedriveClaim {
        let claims = [MESSAGE_ID, REDRIVE_COMETS, REDRIVE_USERS, PROOF];
        let is_claim =
            |name: &[u8]| name.starts_with(OURS) && claims.iter().any(|claim| name == claim.as_bytes());
        if self.trusted || !self.headers.iter().any(|header| is_claim(&header.name)) {
            return RedriveClaim::None;
        }
        let Some(proof) = self.header(PROOF).and_then(|proof| read(proof)) else {
            return RedriveClaim::Unproven;
        };
        let headers = self.headers.iter().map(|header| (&*header.name, header.value.as_deref()));
        let content =
            ProofContent::of(&self.origin.topic, headers, self.key.as_deref(), self.value.as_deref());
        RedriveClaim::Proof(ClaimedProof { content, proof })
    }
}

/// `1:` and 64 hexadecimal digits.
fn read(proof: &[u8]) -> Option<[u8; LENGTH]> {
    let mut read = [0; LENGTH];
    hex::decode_to_slice(proof.strip_prefix(VERSION.as_bytes())?, &mut read).ok()?;
    Some(read)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Header, Origin};

    fn key() -> RedriveKey {
        RedriveKey::from([7; LENGTH])
    }

    fn claimed() -> Record {
        Record {
            origin: Origin { topic: "push".into(), partition: 3, offset: 42 },
            timestamp_ms: Some(7),
            key: Some("key".into()),
            value: Some("value".into()),
            headers: vec![
                Header::new("trace", "1"),
                Header::new(MESSAGE_ID, "push/0/7/0a1b"),
                Header::new(REDRIVE_COMETS, "a:1,b:1"),
            ],
            trusted: false,
        }
    }

    fn content(record: &Record) -> ProofContent {
        let headers = record.headers.iter().map(|header| (&*header.name, header.value.as_deref()));
        ProofContent::of(&record.origin.topic, headers, record.key.as_deref(), record.value.as_deref())
    }

    fn proven() -> Record {
        let mut record = claimed();
        let proof = key().prove(&content(&record));
        record.headers.push(Header::new(PROOF, proof));
        record
    }

    fn is_proven(record: &Record) -> bool {
        matches!(record.claim(), RedriveClaim::Proof(claimed) if key().proves(&claimed))
    }

    #[test]
    fn proofs_are_those_of_earlier_gateways() {
        let proof = "1:92ff192733a181d0bdb70277caac583a2db3d8fea882a12131e3d31cd4bd3e74";
        assert_eq!(key().prove(&content(&claimed())), proof);
    }

    #[test]
    fn only_the_proven_content_is_trusted() {
        assert!(is_proven(&proven()));
        let moved = |partition, offset| Origin { topic: "push".into(), partition, offset };
        assert!(is_proven(&Record { origin: moved(0, 1), timestamp_ms: None, ..proven() }), "places differ");
        let changed: [fn(&mut Record); 9] = [
            |record| record.origin.topic = "other".into(),
            |record| record.key = None,
            |record| record.key = Some("".into()),
            |record| record.value = Some("value2".into()),
            |record| record.value = None,
            |record| (record.key, record.value) = (Some("keyval".into()), Some("ue".into())),
            |record| record.headers[1] = Header::new(MESSAGE_ID, "push/0/8/0a1b"),
            |record| record.headers.push(Header::new("halley-attempts", "9")),
            |record| drop(record.headers.remove(2)),
        ];
        for (at, change) in changed.iter().enumerate() {
            let mut record = proven();
            change(&mut record);
            assert!(!is_proven(&record), "change {at}");
        }
        let mut record = proven();
        record.headers[0] = Header::new("trace", "2");
        assert!(is_proven(&record), "theirs are not the gateway's to prove");
        let RedriveClaim::Proof(claimed) = proven().claim() else { panic!("a proof") };
        assert!(!RedriveKey::from([8; LENGTH]).proves(&claimed));
    }

    #[test]
    fn claims_without_a_proof_are_not_mistaken_for_none() {
        assert_eq!(claimed().claim(), RedriveClaim::Unproven);
        let with = |proof: &'static str| {
            let mut record = claimed();
            record.headers.push(Header::new(PROOF, proof));
            record.claim()
        };
        for odd in ["", "1:", "2:0a", "1:zz", &"1:".repeat(33)] {
            let odd: &'static str = Box::leak(odd.to_owned().into_boxed_str());
            assert_eq!(with(odd), RedriveClaim::Unproven, "{odd}");
        }
        let none = Record { headers: vec![Header::new("halley-attempts", "9")], ..claimed() };
        assert_eq!(none.claim(), RedriveClaim::None);
        assert_eq!(Record { trusted: true, ..claimed() }.claim(), RedriveClaim::None);
        assert_eq!(format!("{:?}", key()), "RedriveKey(..)");
    }

    proptest! {
        #[test]
        fn no_proof_fits_another_record(name in "halley-[a-z]{0,9}", value in any::<Option<Vec<u8>>>(), at in 0..5_usize) {
            let mut record = proven();
            let header = Header { name: name.clone().into(), value: value.map(Into::into) };
            record.headers.insert(at.min(record.headers.len()), header);
            // A second proof is ignored.
            prop_assert_eq!(is_proven(&record), name == PROOF && at == 4);
        }
    }
}
