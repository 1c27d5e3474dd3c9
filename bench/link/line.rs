//! One direction of the link, without a clock: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// What both directions are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Properties {
    /// Bits per second.
    pub(crate) rate: u64,
    /// From the end of sending to arrival.
    pub(crate) delay: Duration,
    /// Bytes that may wait to be sent; what exceeds them is dropped.
    pub(crate) queue: usize,
    /// The probability with which a packet is lost on the way.
    pub(crate) loss: f64,
}

/// A direction: packets wait for those before them to be sent, and then travel.
///
/// Times are since an origin that the caller chooses.
#[derive(Debug)]
pub(crate) struct Line {
    properties: Properties,
    rng: ChaCha8Rng,
    /// When all that waits will have been sent.
    sent: Duration,
    travelling: VecDeque<(Duration, Vec<u8>)>,
    /// Memory of packets that arrived.
    spare: Vec<Vec<u8>>,
}

impl Line {
    pub(crate) fn new(properties: Properties, seed: u64) -> Self {
        Self {
            properties,
            rng: ChaCha8Rng::seed_from_u64(seed),
            sent: Duration::ZERO,
            travelling: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Takes a packet, and says whether it will arrive.
    pub(crate) fn push(&mut self, packet: &[u8], now: Duration) -> bool {
        let start = self.sent.max(now);
        let waiting = self.bytes_in(start - now);
        if waiting + packet.len() > self.properties.queue {
            return false;
        }
        self.sent = start + self.time_of(packet.len());
        if self.is_lost() {
            return false;
        }
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.clear();
        memory.extend_from_slice(packet);
        let arrival = self.sent + self.properties.delay;
        self.travelling.push_back((arrival, memory));
        true
    }

    /// Hands over what has arrived, in order.
    pub(crate) fn deliver(&mut self, now: Duration, mut sink: impl FnMut(&[u8])) {
        while self.next_arrival().is_some_and(|arrival| arrival <= now) {
            let Some((_, packet)) = self.travelling.pop_front() else {
                return;
            };
            sink(&packet);
            self.spare.push(packet);
        }
    }

    /// When the next packet arrives.
    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.travelling.front().map(|(arrival, _)| *arrival)
    }

    fn is_lost(&mut self) -> bool {
        // The upper 53 bits are a number that `f64` holds exactly.
        let drawn = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < self.properties.loss
    }

    fn time_of(&self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.properties.rate);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn bytes_in(&self, time: Duration) -> usize {
        let bytes = time.as_nanos() * u128::from(self.properties.rate) / 8 / 1_000_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 bytes take 1 ms to send, and 10 ms to travel.
    const PROPERTIES: Properties = Properties {
        rate: 8_000_000,
        delay: ms(10),
        queue: 4000,
        loss: 0.0,
    };
    const PACKET: [u8; 1000] = [7; 1000];

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn arrived(line: &mut Line, now: Duration) -> usize {
        let mut count = 0;
        line.deliver(now, |packet| {
            assert_eq!(packet, PACKET);
            count += 1;
        });
        count
    }

    #[test]
    fn a_packet_arrives_once_it_was_sent_and_has_travelled() {
        let mut line = Line::new(PROPERTIES, 1);
        assert_eq!(line.next_arrival(), None);

        assert!(line.push(&PACKET, ms(5)));

        assert_eq!(line.next_arrival(), Some(ms(16)));
        assert_eq!(arrived(&mut line, ms(16) - Duration::from_nanos(1)), 0);
        assert_eq!(arrived(&mut line, ms(16)), 1);
        assert_eq!(arrived(&mut line, ms(1000)), 0);
    }

    #[test]
    fn packets_leave_at_the_rate() {
        let mut line = Line::new(PROPERTIES, 1);
        for _ in 0..3 {
            assert!(line.push(&PACKET, ms(0)));
        }
        for (now, expected) in [(10, 0), (11, 1), (12, 1), (13, 1), (14, 0)] {
            assert_eq!(arrived(&mut line, ms(now)), expected, "at {now} ms");
        }
    }

    #[test]
    fn what_exceeds_the_queue_is_dropped_until_there_is_room() {
        let mut line = Line::new(PROPERTIES, 1);
        let taken = (0..10).filter(|_| line.push(&PACKET, ms(0))).count();
        assert_eq!(taken, 4);
        assert!(line.push(&PACKET, ms(1)));
        assert!(!line.push(&PACKET, ms(1)));
    }

    #[test]
    fn loss_has_its_probability_and_follows_from_the_seed() {
        let properties = Properties {
            loss: 0.1,
            ..PROPERTIES
        };
        let fates = |seed| -> Vec<bool> {
            let mut line = Line::new(properties, seed);
            (0..10_000).map(|n| line.push(&PACKET, ms(n))).collect()
        };
        let lost = fates(1).iter().filter(|arrives| !**arrives).count();
        // Four standard deviations of the binomial distribution.
        assert!((880..=1120).contains(&lost), "{lost}");
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
    }
}
