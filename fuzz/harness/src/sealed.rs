//! Target: an authenticated peer that does as it likes.
//!
//! A session is established first; then the input says what is sealed, under the right keys, and
//! fed to the endpoint. Nothing behind the AEAD is reached otherwise.

use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;
use lostlove_core::crypto::Suite;
use lostlove_core::endpoint::{Sent, TunPacket};
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::internals::crypto::{Direction, FreshSecret};
use lostlove_core::internals::handshake::{
    ClientHello, Grant, Initiator, new_session_id, read_client_hello,
};
use lostlove_core::internals::ip;
use lostlove_core::internals::record::{
    Compressor, ExchangeInit, INIT_LEN, Opener, RESPONSE_LEN, Sealer, decompress, original_len,
    respond,
};
use lostlove_core::internals::wire::{
    Ack, Flags, HEADER_LEN, Header, MAX_PAYLOAD_LEN, PacketType, Protection, next_packet,
};
use lostlove_core::ip::VirtioHeader;
use lostlove_core::time::Instant;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::input::Input;
use crate::machine::Machine;
use crate::packet::{self, Plan};
use crate::peers::{self, Choices};

/// The client in use; it has a network behind it.
const CLIENT: u8 = 2;
const START: Instant = Instant::from_millis(1000);
const MAX_STEPS: usize = 48;
/// The bound of the queue's memory, and one packet of any size beyond it.
const MAX_QUEUED: u64 = 256 * 1024 + 70_000;

/// Runs a session by the decisions in `data`.
///
/// # Panics
///
/// When the endpoint breaks its contract, lets a packet through that it must not, or sends what
/// does not open.
pub fn sealed(data: &[u8]) {
    let mut input = Input::new(data);
    let (control, bits) = (input.u8(), input.u8());
    let compression = control & 2 != 0;
    let choices = Choices { bits, compression };
    let mut rig = if control & 1 == 0 {
        Rig::against_server(choices)
    } else {
        Rig::against_client(choices)
    };
    for _ in 0..MAX_STEPS {
        if input.is_empty() || rig.is_closed {
            break;
        }
        rig.step(&mut input);
        rig.flush();
        rig.check();
    }
    rig.end();
}

struct Rig {
    endpoint: Machine,
    id: ConnectionId,
    is_server: bool,
    /// Both have agreed on it.
    compression: bool,
    /// What the client may send from, and receive for.
    allowed: Vec<IpNet>,
    sealer: Sealer,
    opener: Opener,
    rng: ChaCha20Rng,
    /// The exchange that this side started as a client.
    started: Option<ExchangeInit>,
    /// The exchange that this side answered as a server, with the sequence of the answer.
    answered: Option<(u64, FreshSecret)>,
    /// An exchange was forged, and with it the endpoint's keys are unknown.
    has_lost_keys: bool,
    is_closed: bool,
    now: Instant,
}

fn allowed(grant: &Grant) -> Vec<IpNet> {
    let hosts = [
        grant
            .address_v4
            .map(|net| IpNet::from(core::net::IpAddr::V4(net.addr()))),
        grant
            .address_v6
            .map(|net| IpNet::from(core::net::IpAddr::V6(net.addr()))),
    ];
    let hosts = hosts.into_iter().flatten();
    hosts.chain(peers::routes(CLIENT)).collect()
}

/// A hello on its way.
fn plain(packet_type: PacketType, json: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type,
        stream: 0,
        sequence: 0,
        payload_len: json.len() as u16,
        timestamp_ms: 0,
        flags: Flags::NONE,
    };
    [header.encode(json).as_slice(), json].concat()
}

/// All that the endpoint has to write now.
fn outgoing(endpoint: &mut Machine, id: ConnectionId, now: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    while endpoint.poll_transmit().is_some() {}
    while let Some(batch) = endpoint.take_batch(id, now) {
        let before = bytes.len();
        for piece in batch.pieces() {
            bytes.extend_from_slice(piece);
        }
        endpoint.handle_written(batch, bytes.len() - before, now);
    }
    bytes
}

fn receive(endpoint: &mut Machine, id: ConnectionId, bytes: &[u8], now: Instant) {
    let rest = endpoint.read(id, bytes, &mut |_| Sent::Taken, now);
    assert!(rest.is_some_and(<[u8]>::is_empty), "the connection is open");
}

impl Rig {
    /// This side is the client.
    fn against_server(choices: Choices) -> Self {
        let now = START;
        let mut rng = ChaCha20Rng::from_seed([21; 32]);
        let mut endpoint = Machine::server(choices, 22, now);
        let remote = SocketAddr::from(([192, 0, 2, 1], 5000));
        let id = endpoint.handle_accepted(remote, now).expect("the first");
        let client = peers::client(CLIENT);
        let (mut initiator, hello) =
            Initiator::start(&client, &peers::offer(choices.compression), &mut rng)
                .expect("a right offer");
        let hello = plain(PacketType::HandshakeInit, &hello);
        receive(&mut endpoint, id, &hello, now);
        let answer = outgoing(&mut endpoint, id, now);
        let outcome = initiator.finish(&answer[HEADER_LEN..]).expect("an answer");
        let (suite, rotation) = (outcome.suite, outcome.grant.rotation);
        let secret = |direction| outcome.master.traffic(direction);
        Self {
            endpoint,
            id,
            is_server: true,
            compression: choices.compression,
            allowed: allowed(&outcome.grant),
            sealer: Sealer::new(secret(Direction::ClientToServer), suite, rotation, now),
            opener: Opener::new(secret(Direction::ServerToClient), suite, rotation, now),
            rng,
            started: None,
            answered: None,
            has_lost_keys: false,
            is_closed: false,
            now,
        }
    }

    /// This side is the server.
    fn against_client(choices: Choices) -> Self {
        let now = START;
        let mut rng = ChaCha20Rng::from_seed([23; 32]);
        let mut endpoint = Machine::client(choices, CLIENT, 24, now);
        endpoint.handle_timeout(now);
        let dial = Event::Dial {
            attempt: 1,
            is_beside: false,
        };
        assert_eq!(endpoint.poll_event(), Some(dial));
        let remote = SocketAddr::from(([192, 0, 2, 1], 8443));
        let id = endpoint.handle_connected(remote, now).expect("asked for");
        let hello = outgoing(&mut endpoint, id, now);
        let hello = read_client_hello(&hello[HEADER_LEN..], &peers::server_key());
        let Ok(ClientHello::Current(responder)) = hello else {
            panic!("no hello");
        };
        let session = new_session_id(&mut rng);
        let (outcome, answer) = responder
            .accept(
                None,
                &Suite::ALL,
                session,
                peers::grant(choices.compression),
                &mut rng,
            )
            .expect("a right offer");
        let answer = plain(PacketType::HandshakeResponse, &answer);
        receive(&mut endpoint, id, &answer, now);
        let (suite, rotation) = (outcome.suite, outcome.grant.rotation);
        let secret = |direction| outcome.master.traffic(direction);
        Self {
            endpoint,
            id,
            is_server: false,
            compression: choices.compression,
            allowed: allowed(&outcome.grant),
            sealer: Sealer::new(secret(Direction::ServerToClient), suite, rotation, now),
            opener: Opener::new(secret(Direction::ClientToServer), suite, rotation, now),
            rng,
            started: None,
            answered: None,
            has_lost_keys: false,
            is_closed: false,
            now,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.choice(10) {
            0 | 1 => self.send_entries(input),
            2 => {
                let (stream, flags) = (input.u16(), flags(input));
                let len = usize::from(input.u16());
                self.send((PacketType::Data, stream, flags), input.bytes(len));
            }
            3 => self.send_control(input),
            4 => self.wait(input),
            5 => self.tun_packet(input),
            6 if self.is_server && self.started.is_none() => {
                let (init, payload) = ExchangeInit::start(&mut self.rng);
                self.started = Some(init);
                self.send((PacketType::HandshakeInit, 0, Flags::NONE), &payload);
            }
            6 | 7 => self.send((PacketType::KeepAlive, 0, Flags::NONE), &[]),
            8 => {
                let len = input.choice(64);
                self.feed(input.bytes(len), usize::MAX);
            }
            _ => self.endpoint.shut_down(self.now),
        }
    }

    /// Some packets, perhaps cut into several records.
    fn send_entries(&mut self, input: &mut Input<'_>) {
        let control = input.u8();
        let mut plaintext = Vec::new();
        for _ in 0..=control & 3 {
            let is_v4 = control & 4 == 0;
            let (first, second) = (packet::address(input, is_v4), packet::address(input, is_v4));
            let meta = input.u16();
            let packet = Plan::read(input, first, second).build();
            plaintext.extend((packet.len() as u16).to_be_bytes());
            plaintext.extend(meta.to_be_bytes());
            plaintext.extend(packet);
        }
        let cut = match control & 8 {
            0 => MAX_PAYLOAD_LEN - Suite::MAX_TAG_LEN,
            _ => usize::from(input.u16()).clamp(64, 60_000),
        };
        let stream = u16::from(control >> 4) + 1;
        let marks = Flags::from_bits(input.u8() & 0x47).unwrap_or_default();
        let mut pieces = plaintext.chunks(cut).peekable();
        while let Some(piece) = pieces.next() {
            let more = match pieces.peek() {
                Some(_) => Flags::MORE,
                None => Flags::NONE,
            };
            self.send_data(stream, more | marks, piece);
        }
    }

    /// Sends a payload, compressed if that is asked for and makes it shorter.
    fn send_data(&mut self, stream: u16, flags: Flags, payload: &[u8]) {
        let mut room = vec![0; Compressor::room_for(payload.len())];
        let wanted = flags.contains(Flags::COMPRESSED) && self.compression;
        let compressed = wanted
            .then(|| Compressor::default().compress(payload, &mut room))
            .flatten();
        match compressed {
            Some(len) => self.send((PacketType::Data, stream, flags), &room[..len]),
            None => {
                let flags = flags.without(Flags::COMPRESSED);
                self.send((PacketType::Data, stream, flags), payload);
            }
        }
    }

    fn send_control(&mut self, input: &mut Input<'_>) {
        let packet_type = match input.choice(5) {
            0 => PacketType::Ack,
            1 => PacketType::HandshakeInit,
            2 => PacketType::HandshakeResponse,
            3 => PacketType::KeepAlive,
            _ => PacketType::Disconnect,
        };
        let head = input.u16();
        let stream = if head & 0x8000 == 0 { 0 } else { input.u16() };
        let len = match head & 0x7fff {
            0x7fff => INIT_LEN,
            0x7ffe => RESPONSE_LEN,
            len => usize::from(len),
        };
        let mut payload = input.bytes(len).to_vec();
        if head & 0x7ffe == 0x7ffe {
            payload.resize(len, 3);
        }
        let forges = matches!(
            packet_type,
            PacketType::HandshakeInit | PacketType::HandshakeResponse
        );
        self.has_lost_keys |= forges;
        self.send((packet_type, stream, flags(input)), &payload);
    }

    fn wait(&mut self, input: &mut Input<'_>) {
        let (unit, count) = (input.u8(), input.u16());
        let unit = [1, 10, 1000, 60_000][usize::from(unit & 3)];
        self.now = self.now + Duration::from_millis(unit * u64::from(count & 0x3ff));
        self.endpoint.handle_timeout(self.now);
        let due = self.endpoint.poll_timeout();
        assert!(due.is_none_or(|due| due > self.now), "it would spin");
    }

    fn tun_packet(&mut self, input: &mut Input<'_>) {
        let is_v4 = input.u8() & 1 == 0;
        let (source, destination) = (packet::address(input, is_v4), packet::address(input, is_v4));
        let header = VirtioHeader::from_bytes(input.array());
        let packet = Plan::read(input, source, destination).build();
        self.endpoint.tun_packet(&packet, &header, self.now);
        if let Some(reply) = self.endpoint.take_reply() {
            assert!(ip::parse(reply.as_bytes()).is_ok());
        }
    }

    /// Seals a record and feeds it.
    fn send(&mut self, (packet_type, stream, flags): (PacketType, u16, Flags), payload: &[u8]) {
        let payload = &payload[..payload.len().min(MAX_PAYLOAD_LEN - Suite::MAX_TAG_LEN)];
        let mut record = vec![0; HEADER_LEN];
        record.extend(payload);
        record.resize(record.len() + self.sealer.tag_len(), 0);
        self.sealer
            .seal(packet_type, stream, flags, 1, &mut record, self.now)
            .expect("there is room");
        // Cut where it hurts: in the header, and behind it.
        self.feed(&record, usize::from(flags.bits() & 3) * 20);
    }

    /// Lets the endpoint read `bytes`, the first `cut` of them by themselves.
    fn feed(&mut self, bytes: &[u8], cut: usize) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        for mut bytes in [first, second] {
            while !bytes.is_empty() {
                let (is_server, allowed) = (self.is_server, &self.allowed);
                let mut sink = |packet: TunPacket<'_>| check_sunk(&packet, is_server, allowed);
                let read = self.endpoint.read(self.id, bytes, &mut sink, self.now);
                let Some(rest) = read else {
                    return;
                };
                bytes = rest;
            }
        }
    }

    /// Takes what the endpoint sends, and opens it.
    fn flush(&mut self) {
        let mut stream = outgoing(&mut self.endpoint, self.id, self.now);
        let mut start = 0;
        while start < stream.len() && !self.has_lost_keys {
            let protection = match self.compression {
                true => Protection::Compressible,
                false => Protection::Sealed,
            };
            let frame = next_packet(&stream[start..], protection);
            let frame = frame.expect("a record").expect("a whole record");
            let record = &mut stream[start..start + frame.len];
            let payload = self.opener.open(&frame.header, record, self.now);
            let payload = payload.expect("the endpoint's records open").to_vec();
            if frame.header.flags.contains(Flags::COMPRESSED) {
                let mut original = vec![0; original_len(&payload).expect("a length")];
                decompress(&payload, &mut original).expect("what it compresses");
            }
            self.answer(&frame.header, &payload);
            start += frame.len;
        }
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Assigned { id, .. } => self.endpoint.accept_assignment(id),
                Event::Closed { id, .. } => {
                    assert!(id == self.id && !self.is_closed, "closed twice");
                    self.is_closed = true;
                }
                _ => {}
            }
        }
    }

    /// What a peer does about exchanges.
    fn answer(&mut self, header: &Header, payload: &[u8]) {
        match header.packet_type {
            PacketType::HandshakeResponse => {
                let started = self.started.take().expect("only an answer is sent");
                let fresh = started.finish(payload).expect("a right answer");
                self.opener.mix(&fresh, self.now);
                let ack = Ack {
                    sequence: header.sequence,
                    timestamp_ms: header.timestamp_ms,
                };
                self.send((PacketType::Ack, 0, Flags::NONE), &ack.encode());
                self.sealer.mix(&fresh, self.now);
            }
            PacketType::HandshakeInit => {
                let answer = respond(payload, &mut self.rng);
                let (response, fresh) = answer.expect("a right question");
                let sequence = self.next_sequence(&response);
                self.sealer.mix(&fresh, self.now);
                self.answered = Some((sequence, fresh));
            }
            PacketType::Ack => {
                let ack = Ack::decode(payload).expect("a right Ack");
                if let Some((_, fresh)) = self.answered.take_if(|it| it.0 == ack.sequence) {
                    self.opener.mix(&fresh, self.now);
                }
            }
            PacketType::Data | PacketType::KeepAlive | PacketType::Disconnect => {}
        }
    }

    /// Sends a HandshakeResponse, and says which number it got.
    fn next_sequence(&mut self, response: &[u8]) -> u64 {
        let mut record = [&[0; HEADER_LEN], response].concat();
        record.resize(record.len() + self.sealer.tag_len(), 0);
        let packet_type = PacketType::HandshakeResponse;
        let sequence = self
            .sealer
            .seal(packet_type, 0, Flags::NONE, 1, &mut record, self.now)
            .expect("there is room");
        self.feed(&record, usize::MAX);
        sequence
    }

    fn check(&self) {
        let stats = self.endpoint.stats();
        assert!(stats.queued_bytes <= MAX_QUEUED);
        let open = stats.connections_open();
        assert_eq!(open, u64::from(!self.is_closed));
        assert!(self.is_closed || self.endpoint.poll_timeout().is_some());
    }

    /// Whatever happened, the endpoint shuts down, and in time.
    fn end(&mut self) {
        self.endpoint.shut_down(self.now);
        let deadline = self.now + Duration::from_secs(4);
        loop {
            self.flush();
            if self.endpoint.is_shut_down() {
                break;
            }
            let due = self
                .endpoint
                .poll_timeout()
                .expect("it waits for something");
            assert!(due <= deadline, "it does not shut down");
            self.now = self.now.max(due);
            self.endpoint.handle_timeout(self.now);
        }
        assert_eq!(self.endpoint.stats().queued_bytes, 0);
    }
}

fn flags(input: &mut Input<'_>) -> Flags {
    Flags::from_bits(input.u8() & 0x7f).unwrap_or_default()
}

/// A packet on its way to the TUN device must be one, and be allowed there.
fn check_sunk(packet: &TunPacket<'_>, is_server: bool, allowed: &[IpNet]) -> Sent {
    let info = ip::parse(packet.bytes).expect("what is not IP goes nowhere");
    let judged = if is_server {
        info.source
    } else {
        info.destination
    };
    assert!(
        allowed.iter().any(|net| net.contains(&judged)),
        "{judged} is not the client's"
    );
    assert!(ip::is_unicast_destination(info.destination));
    let mut copy = packet.bytes.to_vec();
    let offload = ip::offload_from_virtio(&packet.header, &mut copy, &info);
    let offload = offload.expect("the header describes the packet");
    assert!(ip::max_segment_len(packet.bytes, &info, offload) <= 1400);
    // A device that does not take everything that is left to do.
    let is_finished = packet.header == VirtioHeader::default();
    match packet.bytes.len() % 4 {
        3 if !is_finished => Sent::Refused { os_error: Some(22) },
        _ => Sent::Taken,
    }
}
