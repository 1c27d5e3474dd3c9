//! Whether a client's path to its server still works: an address or a route may have gone, or a
//! middlebox may have forgotten the connection, and TCP would not say so for minutes.

use core::time::Duration;

use crate::time::Instant;
use crate::wire::PacketType;

/// Silence that is no reason to doubt a path, however short its round trip is.
const MIN_PATIENCE: Duration = Duration::from_secs(3);
/// Round trips that an answer may take.
const PATIENCE_ROUND_TRIPS: u32 = 4;
/// What needs no answer is followed by a question after this share of the patience, so that the
/// answer to it has the rest.
const ASK_DIVISOR: u32 = 4;
/// A socket that takes no bytes for less than this was not full for want of an acknowledgement, or
/// the path is so fast that its answers come in time.
const MIN_BLOCKED: Duration = Duration::from_millis(50);
/// The longest round trip is forgotten by this share with each shorter one.
const FORGET_DIVISOR: u32 = 4;

/// What a client knows of its path.
pub(crate) struct Liveness {
    /// When the first packet since the last sign of life was sealed.
    unanswered_since: Option<Instant>,
    /// Whether a KeepAlive is among these.
    has_asked: bool,
    /// When to look again. Left as it is when an answer comes: moving it with each packet would cost
    /// more than looking in vain once a second.
    check_at: Option<Instant>,
    /// How long the handshake's answer took. The server may have let the hello wait, so this is
    /// worth less than any measured round trip.
    handshake: Duration,
    /// The longest of the last round trips.
    round_trip: Option<Duration>,
    /// Answers to packets before this number measure nothing: they waited in the same outage as one
    /// that was measured.
    measured_from: u64,
    /// Since when the socket takes no more bytes.
    blocked_at: Option<Instant>,
    doubt: Option<Doubt>,
}

/// Why a path may not work.
#[derive(Clone, Copy)]
enum Doubt {
    /// Nothing was heard for too long: any byte ends that.
    Silent,
    /// Something in the system changed: only an answer to what was sealed since ends that, from this
    /// number on, for what was under way before may still come.
    Changed { from: u64 },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Nothing,
    Ask,
    /// The path has become doubtful.
    Silence,
}

impl Liveness {
    /// Of a connection whose hello was answered after `handshake`.
    pub(crate) const fn new(handshake: Duration) -> Self {
        Self {
            unanswered_since: None,
            has_asked: false,
            check_at: None,
            handshake,
            round_trip: None,
            measured_from: 0,
            blocked_at: None,
            doubt: None,
        }
    }

    pub(crate) const fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    pub(crate) const fn deadline(&self) -> Option<Instant> {
        self.check_at
    }

    fn patience(&self) -> Duration {
        let round_trip = self.round_trip.unwrap_or(self.handshake);
        MIN_PATIENCE.max(round_trip.saturating_mul(PATIENCE_ROUND_TRIPS))
    }

    /// A packet was sealed.
    pub(crate) fn note_sealed(&mut self, packet_type: PacketType, now: Instant) {
        match packet_type {
            PacketType::Data | PacketType::HandshakeInit => {}
            PacketType::KeepAlive => self.has_asked = true,
            // These are answers, or the last word.
            PacketType::Ack | PacketType::HandshakeResponse | PacketType::Disconnect => return,
        }
        if self.unanswered_since.is_none() {
            self.wait_from(now);
        }
    }

    fn wait_from(&mut self, now: Instant) {
        self.unanswered_since = Some(now);
        let ask_at = now + self.patience() / ASK_DIVISOR;
        self.check_at.get_or_insert(ask_at);
    }

    /// Bytes came. Says whether they end a doubt.
    pub(crate) fn note_heard(&mut self) -> bool {
        self.unanswered_since = None;
        self.has_asked = false;
        self.end_silence()
    }

    /// The socket took `len` bytes. Says whether that ends a doubt: one that was full takes more only
    /// when the other end has acknowledged some. So a path that is merely slow is not doubted, even
    /// if a question takes long to get through.
    pub(crate) fn note_written(&mut self, len: usize, now: Instant) -> bool {
        if len == 0 {
            self.blocked_at.get_or_insert(now);
            return false;
        }
        let was_full = |at: Instant| now.since(at) >= MIN_BLOCKED;
        if !self.blocked_at.take().is_some_and(was_full) {
            return false;
        }
        if self.unanswered_since.is_some() {
            self.wait_from(now);
        }
        self.end_silence()
    }

    fn end_silence(&mut self) -> bool {
        let is_silence = |doubt: &mut Doubt| matches!(doubt, Doubt::Silent);
        self.doubt.take_if(is_silence).is_some()
    }

    /// The packet of this number was answered, after `round_trip`, and the next one will have the
    /// number `next`. Says whether that ends a doubt.
    pub(crate) fn note_answer(&mut self, sequence: u64, next: u64, round_trip: Duration) -> bool {
        if sequence >= self.measured_from {
            let patience = self.patience();
            if round_trip > patience {
                // An outage, perhaps, and all that waited in it would say so again.
                self.measured_from = next;
            }
            let sample = round_trip.min(patience);
            let longest = self.round_trip.unwrap_or_default();
            self.round_trip = Some(sample.max(longest - longest / FORGET_DIVISOR));
        }
        let is_proof = |doubt: &mut Doubt| match doubt {
            Doubt::Silent => true,
            Doubt::Changed { from } => sequence >= *from,
        };
        self.doubt.take_if(is_proof).is_some()
    }

    /// The path may have changed, and packets from this number on will tell.
    pub(crate) const fn note_change(&mut self, from: u64) {
        self.doubt = Some(Doubt::Changed { from });
    }

    /// Looks whether an answer is overdue.
    pub(crate) fn check(&mut self, now: Instant) -> Finding {
        if self.check_at.take_if(|at| *at <= now).is_none() {
            return Finding::Nothing;
        }
        let Some(since) = self.unanswered_since.filter(|_| self.doubt.is_none()) else {
            return Finding::Nothing;
        };
        let patience = self.patience();
        let (ask_at, doubtful_at) = (since + patience / ASK_DIVISOR, since + patience);
        if doubtful_at <= now {
            self.doubt = Some(Doubt::Silent);
            return Finding::Silence;
        }
        if !self.has_asked && ask_at > now {
            self.check_at = Some(ask_at);
            return Finding::Nothing;
        }
        self.check_at = Some(doubtful_at);
        if core::mem::replace(&mut self.has_asked, true) {
            Finding::Nothing
        } else {
            Finding::Ask
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(50);
    const TWO_MINUTES: u32 = 2400;

    fn measured(round_trip: Duration) -> Liveness {
        let mut liveness = Liveness::new(Duration::ZERO);
        for sequence in 0..3 {
            let _ = liveness.note_answer(sequence, sequence + 1, round_trip);
        }
        liveness
    }

    /// Sends 20 packets a second that nobody answers, for two minutes, and asks as it is told. Each
    /// fifth answer is lost at first. Returns how often the path was doubted, and asked.
    fn doubts(round_trip: Duration, retransmission: Duration) -> (u32, u32) {
        let mut liveness = measured(round_trip);
        let mut now = Instant::from_millis(1000);
        let (mut doubts, mut asked) = (0, 0);
        let mut answer: Option<(Instant, Instant)> = None;
        for _ in 0..TWO_MINUTES {
            now = now + STEP;
            if let Some((asked_at, _)) = answer.take_if(|(_, at)| *at <= now) {
                let _ = liveness.note_heard();
                let _ = liveness.note_answer(
                    u64::from(asked),
                    u64::from(asked) + 1,
                    now.since(asked_at),
                );
            }
            liveness.note_sealed(PacketType::Data, now);
            match liveness.check(now) {
                Finding::Nothing => {}
                Finding::Silence => doubts += 1,
                Finding::Ask => {
                    asked += 1;
                    liveness.note_sealed(PacketType::KeepAlive, now);
                    let lost = if asked % 5 == 0 {
                        retransmission
                    } else {
                        Duration::ZERO
                    };
                    answer = Some((now, now + round_trip + lost));
                }
            }
        }
        (doubts, asked)
    }

    #[test]
    fn a_server_that_is_merely_slow_is_not_doubted() {
        for (round_trip, retransmission) in [(0, 200), (300, 600), (1000, 1500), (2000, 2500)] {
            let millis = Duration::from_millis;
            let (doubts, asked) = doubts(millis(round_trip), millis(retransmission));
            assert_eq!(doubts, 0, "{round_trip} ms");
            assert!((10..200).contains(&asked), "{asked} in two minutes");
        }
    }

    #[test]
    fn an_answer_that_takes_longer_than_patience_is_doubted() {
        let (doubts, _) = doubts(Duration::from_millis(100), Duration::from_millis(3500));
        assert!(doubts > 0);
    }

    /// How long a path may be silent while something is sent.
    fn patience(liveness: &mut Liveness) -> Duration {
        let began_at = Instant::from_millis(1_000_000);
        let mut now = began_at;
        for _ in 0..TWO_MINUTES {
            liveness.note_sealed(PacketType::Data, now);
            if liveness.check(now) == Finding::Silence {
                break;
            }
            now = now + STEP;
        }
        now.since(began_at)
    }

    #[test]
    fn silence_lasts_for_three_seconds_or_four_round_trips() {
        for (round_trip, expected) in [(20, 3000), (750, 3000), (1000, 4000), (2500, 10_000)] {
            let mut liveness = measured(Duration::from_millis(round_trip));
            assert_eq!(patience(&mut liveness), Duration::from_millis(expected));
        }
    }

    #[test]
    fn a_path_that_has_not_been_measured_gets_four_handshakes() {
        let mut liveness = Liveness::new(Duration::from_millis(1500));
        assert_eq!(patience(&mut liveness), Duration::from_secs(6));
        let mut liveness = Liveness::new(Duration::from_millis(1500));
        let _ = liveness.note_answer(0, 1, Duration::from_millis(900));
        assert_eq!(patience(&mut liveness), Duration::from_millis(3600));
    }

    #[test]
    fn an_outage_does_not_make_a_client_patient() {
        let mut liveness = measured(Duration::from_millis(20));
        // Questions that waited in it, and are answered together.
        for (sequence, waited) in [(3, 25), (4, 15), (5, 5)] {
            let _ = liveness.note_answer(sequence, 6, Duration::from_secs(waited));
        }
        assert_eq!(liveness.patience(), MIN_PATIENCE * 4);
        for sequence in 6..12 {
            let _ = liveness.note_answer(sequence, sequence + 1, Duration::from_millis(20));
        }
        assert_eq!(patience(&mut liveness), MIN_PATIENCE);
    }

    /// Nothing is heard, but the socket, which is full, takes some more every two seconds.
    #[test]
    fn a_path_that_still_takes_bytes_is_not_doubted() {
        let mut liveness = measured(Duration::from_millis(20));
        let mut now = Instant::from_millis(1000);
        for step in 0..TWO_MINUTES {
            now = now + STEP;
            liveness.note_sealed(PacketType::Data, now);
            if step % 40 == 0 {
                let _ = liveness.note_written(1400, now);
                let _ = liveness.note_written(0, now);
            }
            assert_ne!(liveness.check(now), Finding::Silence);
        }
        let last = now;
        while liveness.check(now) != Finding::Silence {
            now = now + STEP;
            assert!(now <= last + MIN_PATIENCE);
        }
        assert!(liveness.note_written(1, now), "that ends the doubt");
        let again = now;
        while liveness.check(now) != Finding::Silence {
            now = now + STEP;
            assert!(now <= again + MIN_PATIENCE);
        }
    }

    /// What the socket takes before it is full says nothing.
    #[test]
    fn bytes_that_the_own_system_takes_are_no_sign_of_life() {
        let mut liveness = measured(Duration::from_millis(20));
        let mut now = Instant::from_millis(1000);
        while liveness.check(now) != Finding::Silence {
            now = now + STEP;
            assert!(now <= Instant::from_millis(1000) + MIN_PATIENCE + 2 * STEP);
            liveness.note_sealed(PacketType::Data, now);
            assert!(!liveness.note_written(1400, now));
            // As when the system is short of memory.
            assert!(!liveness.note_written(0, now));
            assert!(!liveness.note_written(1400, now + Duration::from_millis(1)));
        }
    }
}
