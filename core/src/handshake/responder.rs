//! The server's side.

use core::fmt;

use rand_core::CryptoRng;
use uuid::Uuid;

use super::MINOR_VERSION;
use super::binding::{noise_psk, refusal_psk};
use super::message::{self, ClientMessage, ServerHello, ServerMessage};
use super::noise::Noise;
use super::payload::{ClientOffer, Grant};
use crate::crypto::{
    KEY_AGREEMENT, Master, PresharedKey, PublicKey, SecretKey, Suite, kem, wiping,
};
use crate::error::HandshakeError;

/// A `ClientHello` that a server can answer.
#[derive(Debug)]
pub enum ClientHello {
    /// LLP 1.0: nothing in it is authenticated. Answer with
    /// `probe_server_hello`, if at all.
    Probe,
    /// LLP 1.1, made by the holder of a static key, for this server's key.
    Current(Box<Responder>),
}

/// Reads the JSON of a `ClientHello`.
///
/// # Errors
///
/// [`HandshakeError::Malformed`] or [`HandshakeError::TooLong`] if this is no `ClientHello`,
/// [`HandshakeError::Version`] if it is of another major version,
/// [`HandshakeError::Kem`] if the KEM key has a wrong length, [`HandshakeError::Authentication`]
/// if it was made for another server key, altered, or with a key of low order.
pub fn read_client_hello(
    json: &[u8],
    secret_key: &SecretKey,
) -> Result<ClientHello, HandshakeError> {
    let hello = match ClientMessage::parse(json)? {
        ClientMessage::Probe => return Ok(ClientHello::Probe),
        ClientMessage::Current(hello) => hello,
    };
    let (noise, payload) = wiping::<KEY_AGREEMENT, _>(|| {
        let mut noise = Noise::responder(secret_key, &hello.transcript())?;
        let payload = noise.read(&hello.noise)?;
        Ok::<_, HandshakeError>((noise, payload))
    })?;
    // Names that this version does not know cannot be chosen.
    let suites = hello.suites.iter().filter_map(|name| name.parse().ok());
    let offer = ClientOffer::decode(suites.collect(), &payload)?;
    let peer_key = noise.peer_key().ok_or(HandshakeError::Authentication)?;
    Ok(ClientHello::Current(Box::new(Responder {
        noise,
        hello,
        offer,
        peer_key,
    })))
}

/// A server's handshake that has read a genuine `ClientHello`, and has not answered yet.
///
/// The hello may be a replay: nothing of an existing session may change before the client's first
/// sealed packet has arrived.
pub struct Responder {
    noise: Noise,
    hello: message::ClientHello,
    offer: ClientOffer,
    peer_key: PublicKey,
}

/// Why a server refuses a client that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No minor version in common.
    Version,
    /// No suite in common.
    Suites,
}

impl Refusal {
    const fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Suites => 2,
        }
    }

    /// What a client makes of a code. Those of later servers concern versions, of whatever.
    pub(super) const fn of_code(code: u8) -> Self {
        match code {
            2 => Self::Suites,
            _ => Self::Version,
        }
    }

    /// The same as an error of the handshake.
    pub const fn error(self) -> HandshakeError {
        match self {
            Self::Version => HandshakeError::Version,
            Self::Suites => HandshakeError::NoCommonSuite,
        }
    }
}

impl Responder {
    /// Why there can be no session, if a server has these `suites`.
    pub fn refusal(&self, suites: &[Suite]) -> Option<Refusal> {
        if !self.hello.minor_versions.contains(&MINOR_VERSION) {
            return Some(Refusal::Version);
        }
        let is_common = |suite: &Suite| self.offer.suites.contains(suite);
        (!suites.iter().any(is_common)).then_some(Refusal::Suites)
    }

    /// Writes the JSON that tells the client so, and nobody else. Only for a client that is known: what
    /// strangers send is not answered.
    ///
    /// # Errors
    ///
    /// None that a peer can bring about.
    pub fn refuse(
        mut self,
        refusal: Refusal,
        preshared_key: Option<&PresharedKey>,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, HandshakeError> {
        wiping::<KEY_AGREEMENT, _>(|| {
            let psk = refusal_psk(&self.hello, preshared_key);
            self.noise.set_psk(&psk)?;
            let noise = self.noise.write(&[refusal.code()], rng)?;
            ServerMessage::refusal(&noise)
        })
    }

    /// The client's identity. Whether it may connect is the caller's decision.
    pub const fn peer_key(&self) -> PublicKey {
        self.peer_key
    }

    /// Tells this hello from every other: it is random, and a copy of it that authenticates has
    /// the same.
    pub(crate) fn hello_id(&self) -> u128 {
        let half = self.hello.random.first_chunk();
        half.map_or(0, |bytes| u128::from_be_bytes(*bytes))
    }

    /// What the client can do and wishes for.
    pub const fn offer(&self) -> &ClientOffer {
        &self.offer
    }

    /// Answers, and returns the JSON of the `ServerHello` to send.
    ///
    /// `suites` are this server's, best first. `grant` holds the server's own MTU and rotation; in
    /// the outcome, and in what the client learns, they are the smaller of both sides' values, at
    /// least [`MIN_ROTATION_BYTES`](crate::config::MIN_ROTATION_BYTES) and
    /// [`MIN_ROTATION_INTERVAL`](crate::config::MIN_ROTATION_INTERVAL), and the IPv6 address is taken
    /// away if the MTU does not allow IPv6.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::NoCommonSuite`] if the client knows none of `suites`,
    /// [`HandshakeError::Kem`] if its KEM key is not valid (FIPS 203, section 7.2),
    /// [`HandshakeError::PushedDns`] if `grant` pushes more than
    /// [`MAX_PUSHED_DNS`](crate::config::MAX_PUSHED_DNS) servers, [`HandshakeError::PushedRoutes`] if more
    /// than [`MAX_PUSHED_ROUTES`](crate::config::MAX_PUSHED_ROUTES) routes,
    /// [`HandshakeError::Ungrantable`] if it holds what no interface or resolver can use.
    pub fn accept(
        self,
        preshared_key: Option<&PresharedKey>,
        suites: &[Suite],
        session: Uuid,
        grant: Grant,
        rng: &mut impl CryptoRng,
    ) -> Result<(ServerOutcome, Vec<u8>), HandshakeError> {
        if let Some(refusal) = self.refusal(suites) {
            return Err(refusal.error());
        }
        let suite = *suites
            .iter()
            .find(|suite| self.offer.suites.contains(suite))
            .ok_or(HandshakeError::NoCommonSuite)?;
        let grant = grant.agree(&self.offer);
        wiping::<KEY_AGREEMENT, _>(|| self.answer(preshared_key, suite, session, grant, rng))
    }

    /// Answers with exactly this suite and grant.
    pub(super) fn answer(
        mut self,
        preshared_key: Option<&PresharedKey>,
        suite: Suite,
        session: Uuid,
        grant: Grant,
        rng: &mut impl CryptoRng,
    ) -> Result<(ServerOutcome, Vec<u8>), HandshakeError> {
        let payload = grant.encode().map_err(|error| match error {
            HandshakeError::Malformed | HandshakeError::Assignment => HandshakeError::Ungrantable,
            error => error,
        })?;
        let mut random = [0; 32];
        rng.fill_bytes(&mut random);
        let (ciphertext, shared) =
            kem::encapsulate(&*self.hello.kem, rng).map_err(|_| HandshakeError::Kem)?;
        let mut answer = ServerHello {
            random,
            session,
            minor_version: MINOR_VERSION,
            suite: suite.to_string(),
            kem: Box::new(ciphertext),
            noise: Vec::new(),
        };
        let psk = noise_psk(&self.hello, &answer, &shared, preshared_key);
        self.noise.set_psk(&psk)?;
        answer.noise = self.noise.write(&payload, rng)?;
        let json = answer.to_json()?;
        let keys = self.noise.split();
        let master = Master::derive(&self.hello.random, &answer.random, keys.as_bytes());
        let outcome = ServerOutcome {
            suite,
            master,
            grant,
        };
        Ok((outcome, json))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("peer_key", &self.peer_key)
            .field("offer", &self.offer)
            .finish_non_exhaustive()
    }
}

/// What a server has once it has answered.
#[derive(Debug)]
pub struct ServerOutcome {
    /// The suite that seals all further packets.
    pub suite: Suite,
    /// The secret of the session.
    pub master: Master,
    /// What the client was given: `grant` of [`Responder::accept`], within the client's limits.
    pub grant: Grant,
}
