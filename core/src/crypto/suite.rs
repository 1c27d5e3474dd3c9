//! Names and sizes of the cipher suites.

use core::fmt;
use core::str::FromStr;

/// How Data and control packets are sealed once a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// Hybrid Symmetric Encryption: ChaCha20-Poly1305, and its result sealed again with
    /// AES-256-GCM under an independent key. Both tags are verified.
    Hse,
    /// AES-256-GCM alone.
    Aes256Gcm,
    /// ChaCha20-Poly1305 alone.
    ChaCha20Poly1305,
}

impl Suite {
    /// Every suite, in the default order of preference.
    pub const ALL: [Self; 3] = [Self::Hse, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The largest [`Suite::tag_len`].
    pub const MAX_TAG_LEN: usize = 32;

    /// Bytes that sealing adds to a plaintext.
    pub const fn tag_len(self) -> usize {
        match self {
            Self::Hse => 32,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 16,
        }
    }

    /// The name on the wire and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hse => "hse",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A suite name that this implementation does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown suite `{0}`, expected one of hse, aes-256-gcm, chacha20-poly1305")]
pub struct UnknownSuite(pub String);

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<Self, UnknownSuite> {
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == name)
            .ok_or_else(|| UnknownSuite(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
            assert!(suite.tag_len() <= Suite::MAX_TAG_LEN);
        }
        assert!("rot13".parse::<Suite>().is_err());
    }
}
