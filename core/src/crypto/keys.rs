//! Static keys and their text form: 32 bytes as 44 characters of base64, as in WireGuard.

use core::fmt;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::secret::Secret;
use super::x25519;

/// A text that is not a key. It never repeats the text, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 characters of standard base64 that decode to 32 bytes.
    #[error("not a key: expected 44 characters of base64 (32 bytes)")]
    Malformed,
    /// A public key of low order: any secret key would give the same shared secret.
    #[error("not a usable public key: it has low order")]
    LowOrder,
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    // The decoder estimates three bytes for each four characters, one more than the key has.
    let mut buffer = Zeroizing::new([0; 33]);
    let len = STANDARD
        .decode_slice(text.trim(), buffer.as_mut_slice())
        .map_err(|_| KeyError::Malformed)?;
    if len != 32 {
        return Err(KeyError::Malformed);
    }
    bytes.copy_from_slice(&buffer[..32]);
    Ok(bytes)
}

fn encode(bytes: &[u8; 32]) -> String {
    STANDARD.encode(bytes)
}

/// An X25519 public key: the identity of a peer or of the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes as they are; [`PublicKey::from_str`] also refuses keys of low order.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether any secret key would give an all-zero shared secret with this one (RFC 7748,
    /// section 6.1). X25519 ignores the topmost bit (section 5).
    pub(crate) fn is_low_order(&self) -> bool {
        let mut canonical = self.0;
        canonical[31] &= 0x7f;
        LOW_ORDER.contains(&canonical)
    }
}

/// The u-coordinates of the points whose order divides eight, on the curve and on its twist: 0, 1,
/// the two of order eight, -1, and 0 and 1 once more, spelled with the prime added.
pub(super) const LOW_ORDER: [[u8; 32]; 7] = [
    ends(0x00, 0x00, 0x00),
    ends(0x01, 0x00, 0x00),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    ends(0xec, 0xff, 0x7f),
    ends(0xed, 0xff, 0x7f),
    ends(0xee, 0xff, 0x7f),
];

/// 32 bytes of which the first and the last are not as those between.
const fn ends(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let key = Self(*decode(text)?);
        if key.is_low_order() {
            Err(KeyError::LowOrder)
        } else {
            Ok(key)
        }
    }
}

/// An X25519 secret key. Erased on drop; neither `Debug` nor `Display` shows it.
#[derive(Clone, ZeroizeOnDrop)]
pub struct SecretKey(Secret<32>);

impl SecretKey {
    /// Takes 32 bytes as they are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(Secret::new(|place| *place = *bytes))
    }

    /// The 32 secret bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The public key that belongs to this secret key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::public_key(self.as_bytes()))
    }

    /// The text form, for writing a key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(self.as_bytes()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

/// 32 bytes that a client and the server share in advance, mixed into the handshake on top of the
/// key exchange. Erased on drop; neither `Debug` nor `Display` shows it.
#[derive(Clone, ZeroizeOnDrop)]
pub struct PresharedKey(Secret<32>);

impl PresharedKey {
    /// Takes 32 bytes as they are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(Secret::new(|place| *place = *bytes))
    }

    /// The 32 secret bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The text form, for writing a key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(self.as_bytes()))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_of_rfc_7748_alice() {
        let secret: SecretKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
            .parse()
            .unwrap();
        let public: PublicKey = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
            .parse()
            .unwrap();
        assert_eq!(secret.public_key(), public);
        assert_eq!(public.to_string().parse(), Ok(public));
    }

    /// What scalar multiplication says, which costs as much as a handshake's.
    fn multiplies_to_zero(point: [u8; 32]) -> bool {
        x25519::shared_secret(&[0x55; 32], &point).is_none()
    }

    /// Case 21: points of low order, non-canonical encodings and the ignored bit included.
    #[test]
    fn public_keys_of_low_order_are_refused() {
        for mut point in LOW_ORDER {
            for bit in [0, 0x80] {
                point[31] |= bit;
                assert!(multiplies_to_zero(point), "{point:02x?}");
                assert!(PublicKey(point).is_low_order(), "{point:02x?}");
                assert_eq!(encode(&point).parse::<PublicKey>(), Err(KeyError::LowOrder));
            }
        }
    }

    /// All encodings beyond the prime, and each neighbour in one bit of a point of low order.
    #[test]
    fn what_is_close_to_a_key_of_low_order_is_judged_as_multiplication_does() {
        let beyond = (0xed..=0xff).map(|first| ends(first, 0xff, 0x7f));
        let neighbours = LOW_ORDER.into_iter().flat_map(|point| {
            (0..256).map(move |bit| {
                let mut other = point;
                other[bit / 8] ^= 1 << (bit % 8);
                other
            })
        });
        for point in beyond.chain(neighbours) {
            let expected = multiplies_to_zero(point);
            assert_eq!(PublicKey(point).is_low_order(), expected, "{point:02x?}");
        }
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = SecretKey::from_bytes([5; 32]);
        let read: SecretKey = key.to_base64().parse().unwrap();
        assert_eq!(read.as_bytes(), key.as_bytes());
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in [
            "",
            "abc",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LC",
            &"A".repeat(48),
        ] {
            assert_eq!(
                text.parse::<PublicKey>(),
                Err(KeyError::Malformed),
                "{text}"
            );
        }
    }

    #[test]
    fn secrets_are_absent_from_debug_output() {
        let key = SecretKey::from_bytes([0xab; 32]);
        let psk = PresharedKey::from_bytes([0xab; 32]);
        assert_eq!(format!("{key:?}{psk:?}"), "SecretKey(..)PresharedKey(..)");
    }
}
