//! Digests, MACs and the sealing of frames (section 3): BLAKE3 for digests, HMAC-SHA256 for MACs,
//! AES-256-GCM for frames between two ends. Keys never print themselves and are wiped when dropped
//! (but for frame keys, which are worth no more than their connection), and MACs are compared in
//! constant time.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac as _};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;
/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;

/// Bytes that sealing adds to a frame.
pub const TAG_BYTES: usize = 16;

/// A BLAKE3 value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

impl Digest {
    /// BLAKE3 over the parts, one after the other.
    pub fn of(parts: &[&[u8]]) -> Digest {
        let mut hash = blake3::Hasher::new();
        for part in parts {
            hash.update(part);
        }
        Digest(hash.finalize().into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", hex::encode(&self.0[..4]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// An HMAC-SHA256 value. Compare it only through [`MacKey::verify`].
#[derive(Clone, Copy)]
pub struct Mac(pub [u8; MAC_BYTES]);

/// The name of a cluster: 32 random bytes that every MAC and the chain start from, so that nothing
/// of one cluster means anything in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub [u8; 32]);

/// A secret: 32 bytes, wiped on drop, without `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes as they are; they must come from a cryptographic generator.
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// A keyed MAC state, made once and used for every message.
    pub fn mac_key(&self) -> MacKey {
        MacKey::new(&self.0)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut text = hex::encode(self.0);
        let done = to.serialize_str(&text);
        text.zeroize();
        done
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        let mut text = String::deserialize(from)?;
        let mut bytes = [0; 32];
        let decoded = hex::decode_to_slice(&text, &mut bytes);
        text.zeroize();
        match decoded {
            Ok(()) => Ok(Secret(bytes)),
            Err(_) => Err(D::Error::custom("a key is 64 hexadecimal digits")),
        }
    }
}

/// An HMAC-SHA256 key, ready to use.
#[derive(Clone)]
pub struct MacKey(Hmac<Sha256>);

impl MacKey {
    fn new(key: &[u8; 32]) -> MacKey {
        // HMAC takes a key of any length, so this cannot fail.
        MacKey(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// The MAC over the parts, one after the other. The caller makes the parting unambiguous.
    pub fn mac(&self, parts: &[&[u8]]) -> Mac {
        let mut state = self.0.clone();
        for part in parts {
            state.update(part);
        }
        Mac(state.finalize().into_bytes().into())
    }

    /// Whether `claimed` is the MAC over the parts, in constant time.
    pub fn verify(&self, parts: &[&[u8]], claimed: &[u8; MAC_BYTES]) -> bool {
        let right = self.mac(parts);
        bool::from(subtle::ConstantTimeEq::ct_eq(&right.0[..], &claimed[..]))
    }

    /// A key of its own for the frames of one connection and direction, derived from this one.
    pub fn derive(&self, parts: &[&[u8]]) -> FrameKey {
        let mut mac = self.mac(parts);
        let key = UnboundKey::new(&AES_256_GCM, &mac.0);
        mac.0.zeroize();
        FrameKey(LessSafeKey::new(key.expect("AES-256 takes a key of 32 bytes")))
    }
}

/// An AES-256-GCM key for the frames of one connection and direction. A frame's number is its
/// nonce: whoever holds the key must never seal two frames of one number.
pub struct FrameKey(LessSafeKey);

impl FrameKey {
    /// Seals frame `number` in place; the tag goes behind it.
    pub fn seal(&self, number: u64, frame: &mut [u8]) -> [u8; TAG_BYTES] {
        let sealed = self.0.seal_in_place_separate_tag(nonce(number), Aad::empty(), frame);
        // GCM takes frames of up to 64 GiB.
        let tag = sealed.expect("a frame is shorter than what GCM takes");
        tag.as_ref().try_into().expect("GCM's tag has 16 bytes")
    }

    /// Opens in place what was sealed as frame `number`, its tag behind it. Returns whether it is
    /// what was sealed; if not, `sealed` holds nothing of use any more.
    #[must_use]
    pub fn open(&self, number: u64, sealed: &mut [u8]) -> bool {
        self.0.open_in_place(nonce(number), Aad::empty(), sealed).is_ok()
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_of_other_bytes_or_another_key_is_refused() {
        let key = Secret::new([1; 32]).mac_key();
        let mac = key.mac(&[b"ab", b"c"]);
        assert!(key.verify(&[b"abc"], &mac.0));
        assert!(!key.verify(&[b"abd"], &mac.0));
        assert!(!Secret::new([2; 32]).mac_key().verify(&[b"abc"], &mac.0));
    }

    #[test]
    fn a_frame_opens_under_its_key_and_number_alone() {
        let key = |byte| Secret::new([byte; 32]).mac_key().derive(&[b"frames"]);
        let mut sealed = b"hello".to_vec();
        let tag = key(1).seal(7, &mut sealed);
        sealed.extend_from_slice(&tag);
        assert!(!key(2).open(7, &mut sealed.clone()) && !key(1).open(8, &mut sealed.clone()));
        assert!(key(1).open(7, &mut sealed));
        assert_eq!(&sealed[..5], b"hello");
        assert!(!key(1).open(7, &mut []), "shorter than a tag");
    }

    #[test]
    fn the_digest_is_the_published_one_whatever_the_parts() {
        // The test vector of the specification: 251 bytes counting up, again and again.
        let input: Vec<u8> = (0..5120).map(|i| (i % 251) as u8).collect();
        let digest = Digest::of(&[&input[..100], &[], &input[100..]]);
        assert_eq!(
            hex::encode(digest.0),
            "9cadc15fed8b5d854562b26a9536d9707cadeda9b143978f319ab34230535833"
        );
    }

    #[test]
    fn the_mac_is_the_one_of_rfc_4231() {
        // RFC 4231, test case 2, has a four-byte key; zero padding makes it one of ours.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = Secret::new(key).mac_key().mac(&[b"what do ya want for nothing?"]);
        assert_eq!(
            hex::encode(mac.0),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
