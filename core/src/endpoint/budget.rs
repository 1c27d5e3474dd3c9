//! How many ICMP errors an endpoint sends.

use crate::ip::IcmpPacket;
use crate::rate::TokenBucket;
use crate::time::Instant;

/// ICMP errors per second, and at once: what Linux allows itself by default.
const RATE: u64 = 1000;
const BURST: u64 = 50;

/// What may be sent of ICMP errors. Those that tell a packet's size have an allowance of their own:
/// without them a connection stands still, while of the others one is as good as a thousand, and
/// anybody can ask for them with packets to addresses that nobody has.
pub(super) struct IcmpBudget {
    too_big: TokenBucket,
    others: TokenBucket,
}

impl IcmpBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            too_big: TokenBucket::new(RATE, BURST, now),
            others: TokenBucket::new(RATE, BURST, now),
        }
    }

    /// Whether `error` may be sent; it counts as sent then.
    pub(super) fn try_spend(&mut self, error: &IcmpPacket, now: Instant) -> bool {
        let bucket = if error.is_too_big() {
            &mut self.too_big
        } else {
            &mut self.others
        };
        bucket.try_spend(1, now)
    }
}
