//! The client's side.

use core::fmt;

use rand_core::CryptoRng;
use uuid::Uuid;

use super::MINOR_VERSION;
use super::binding::{noise_psk, refusal_psk};
use super::message::{ClientHello, ServerHello, ServerMessage};
use super::noise::Noise;
use super::payload::{ClientOffer, Grant};
use super::responder::Refusal;
use crate::config;
use crate::crypto::kem::DecapsulationKey;
use crate::crypto::{KEY_AGREEMENT, Master, PresharedKey, Suite, wiping};
use crate::error::HandshakeError;

/// A client's handshake that waits for the server's answer.
pub struct Initiator {
    noise: Noise,
    kem: DecapsulationKey,
    hello: ClientHello,
    offer: ClientOffer,
    preshared_key: Option<PresharedKey>,
}

impl Initiator {
    /// Starts a handshake, and returns the JSON of the `ClientHello` to send.
    ///
    /// `offer.rotation` below `MIN_ROTATION_BYTES` or
    /// [`MIN_ROTATION_INTERVAL`](crate::config::MIN_ROTATION_INTERVAL) is raised to these.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::NoCommonSuite`] if `offer.suites` is empty,
    /// [`HandshakeError::Malformed`] if `offer.mtu` is out of range,
    /// [`HandshakeError::Authentication`] if the server's key has low order.
    pub fn start(
        client: &config::Client,
        offer: &ClientOffer,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        wiping::<KEY_AGREEMENT, _>(|| Self::begin(client, offer, rng))
    }

    fn begin(
        client: &config::Client,
        offer: &ClientOffer,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        if offer.suites.is_empty() {
            return Err(HandshakeError::NoCommonSuite);
        }
        let mut random = [0; 32];
        rng.fill_bytes(&mut random);
        let (kem, encapsulation_key) = DecapsulationKey::generate(rng);
        let mut hello = ClientHello {
            random,
            minor_versions: vec![MINOR_VERSION],
            suites: offer.suites.iter().map(Suite::to_string).collect(),
            kem: Box::new(encapsulation_key),
            noise: Vec::new(),
        };
        let mut noise =
            Noise::initiator(&client.secret_key, &client.server_key, &hello.transcript())?;
        hello.noise = noise.write(&offer.encode()?, rng)?;
        let json = hello.to_json()?;
        let initiator = Self {
            noise,
            kem,
            hello,
            offer: offer.clone(),
            preshared_key: client.preshared_key.clone(),
        };
        Ok((initiator, json))
    }

    /// Reads the JSON of the `ServerHello` and completes the handshake: the server has proved its
    /// key.
    ///
    /// An answer that is not the server's changes nothing: the handshake still waits, and the
    /// genuine answer can follow. Whether to wait for it is the caller's decision. After success
    /// every further call fails.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Malformed`] or [`HandshakeError::TooLong`] if this is no `ServerHello`,
    /// or if an authentic one grants what cannot be used or less than the offer asked for;
    /// [`HandshakeError::Version`] if the server speaks LLP 1.0 only, or another minor version;
    /// [`HandshakeError::NoCommonSuite`] if its suite was not offered; [`HandshakeError::Kem`] if
    /// the ciphertext has a wrong length; [`HandshakeError::Authentication`] for all that fails a
    /// proof.
    pub fn finish(&mut self, server_hello_json: &[u8]) -> Result<ClientOutcome, HandshakeError> {
        wiping::<KEY_AGREEMENT, _>(|| self.complete(server_hello_json))
    }

    fn complete(&mut self, server_hello_json: &[u8]) -> Result<ClientOutcome, HandshakeError> {
        let answer = match ServerMessage::parse(server_hello_json)? {
            ServerMessage::Hello(answer) => answer,
            ServerMessage::Refusal(noise) => return Err(self.read_refusal(&noise)?.error()),
        };
        if answer.minor_version != MINOR_VERSION {
            return Err(HandshakeError::Version);
        }
        let suite = self.chosen_suite(&answer)?;
        let kem = self
            .kem
            .decapsulate(&*answer.kem)
            .map_err(|_| HandshakeError::Kem)?;
        let psk = noise_psk(&self.hello, &answer, &kem, self.preshared_key.as_ref());
        self.noise.set_psk(&psk)?;
        let grant = Grant::decode(&self.noise.read(&answer.noise)?)?;
        if !grant.honours(&self.offer) {
            return Err(HandshakeError::Malformed);
        }
        let keys = self.noise.split();
        let master = Master::derive(&self.hello.random, &answer.random, keys.as_bytes());
        Ok(ClientOutcome {
            session: answer.session,
            suite,
            master,
            grant,
        })
    }

    /// Why the server refuses, if it is the server who does.
    fn read_refusal(&mut self, noise: &[u8]) -> Result<Refusal, HandshakeError> {
        let psk = refusal_psk(&self.hello, self.preshared_key.as_ref());
        self.noise.set_psk(&psk)?;
        let payload = self.noise.read(noise)?;
        let code = payload.first().ok_or(HandshakeError::Malformed)?;
        Ok(Refusal::of_code(*code))
    }

    fn chosen_suite(&self, answer: &ServerHello) -> Result<Suite, HandshakeError> {
        let suite = answer.suite.parse().ok();
        suite
            .filter(|suite| self.offer.suites.contains(suite))
            .ok_or(HandshakeError::NoCommonSuite)
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator(..)")
    }
}

/// What a client has after a successful handshake.
#[derive(Debug)]
pub struct ClientOutcome {
    /// The session's id, chosen by the server.
    pub session: Uuid,
    /// The suite that seals all further packets, chosen by the server.
    pub suite: Suite,
    /// The secret of the session.
    pub master: Master,
    /// What the server gave.
    pub grant: Grant,
}
