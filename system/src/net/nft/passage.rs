//! Counters before and after everybody's chains of forwarding.

use std::collections::HashMap;

use super::super::passage::PassageFigures;
use super::{chain, quoted};

/// Before all chains of others, and after them.
const COMING: i32 = -1000;
const PASSING: i32 = 1000;

/// New connections' packets are counted by their source port, to tell many connections from one that is
/// tried again and again: a port of so many shares a counter.
pub(in crate::net) const BUCKETS: usize = 8;

/// What one direction of one version of IP has been counted to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::net) struct Counts {
    /// Packets that came, by bucket; answers are all in the first.
    pub(in crate::net) came: [u64; BUCKETS],
    /// How many of these have passed.
    pub(in crate::net) passed: u64,
    /// Whether they are counted by bucket.
    pub(in crate::net) is_sorted: bool,
}

impl Counts {
    /// Packets that came.
    pub(in crate::net) fn came(&self) -> u64 {
        self.came.iter().sum()
    }

    /// Whether `later` can be what these have become: counters begin anew with their table.
    pub(in crate::net) fn precedes(&self, later: &Self) -> bool {
        let mut pairs = self.came.iter().zip(&later.came);
        self.passed <= later.passed && pairs.all(|(before, after)| before <= after)
    }

    /// The buckets that have got something since `before`.
    pub(in crate::net) fn buckets_since(&self, before: &Self) -> usize {
        let pairs = self.came.iter().zip(&before.came);
        pairs.filter(|(after, before)| after > before).count()
    }
}

/// The table's counters, and the chains that count.
pub(in crate::net) fn chains(tun: &str) -> String {
    let tun = quoted(tun);
    let (mut text, mut coming, mut passing) = (String::new(), Vec::new(), Vec::new());
    for (family, from) in PassageFigures::LABELS {
        let name = |what: &str| format!("\"{family}_{from}_{what}\"");
        let is_sorted = is_sorted(from);
        for bucket in 0..buckets(is_sorted) {
            text += &format!("counter {family}_{from}_{bucket} {{ }}\n");
        }
        text += &format!("counter {family}_{from}_passed {{ }}\n");
        let matched = match is_sorted {
            true => format!(
                "meta nfproto {family} iifname {tun} oifname != {tun} ct state new meta l4proto {{ tcp, udp }}"
            ),
            false => {
                format!("meta nfproto {family} iifname != {tun} oifname {tun} ct direction reply")
            }
        };
        let counter = match is_sorted {
            true => {
                let pairs = (0..BUCKETS).map(|it| format!("{it} : {}", name(&it.to_string())));
                let pairs: Vec<_> = pairs.collect();
                format!("th sport & {} map {{ {} }}", BUCKETS - 1, pairs.join(", "))
            }
            false => name("0"),
        };
        coming.push(format!("{matched} counter name {counter}"));
        passing.push(format!("{matched} counter name {}", name("passed")));
    }
    text += &chain(
        "coming",
        &format!("filter hook forward priority {COMING}"),
        &coming,
    );
    text + &chain(
        "passing",
        &format!("filter hook forward priority {PASSING}"),
        &passing,
    )
}

/// The counts in the order of [`PassageFigures::LABELS`].
pub(in crate::net) fn counts_of(counters: &HashMap<String, u64>) -> [Counts; 4] {
    PassageFigures::LABELS.map(|(family, from)| {
        let count = |what: &str| counters.get(&format!("{family}_{from}_{what}")).copied();
        let mut counts = Counts {
            passed: count("passed").unwrap_or_default(),
            is_sorted: is_sorted(from),
            ..Counts::default()
        };
        for (bucket, came) in counts.came.iter_mut().enumerate() {
            *came = count(&bucket.to_string()).unwrap_or_default();
        }
        counts
    })
}

/// Answers have been asked for, so that nothing need be known of who sends them.
fn is_sorted(from: &str) -> bool {
    from == "clients"
}

const fn buckets(is_sorted: bool) -> usize {
    if is_sorted { BUCKETS } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nft::{self, Family};
    use crate::net::{namespace, nfnetlink};

    #[test]
    fn nft_takes_the_table_and_the_kernel_tells_each_counter() {
        namespace::run(|ns| {
            nft::install(&ns.paths, Family::Inet, "t", &chains("tun0")).unwrap();
            let listing = nft::list(&ns.paths, Family::Inet, "t").unwrap();
            let counters = nfnetlink::counters("t").unwrap();
            assert_eq!(counters.len(), 2 * (BUCKETS + 1) + 2 * 2);
            assert!(counters.values().all(|count| *count == 0), "{counters:?}");
            assert!(nfnetlink::counters("u").unwrap().is_empty());

            // What they count changes nothing of how the table is listed.
            ns.shell("nft 'add chain inet t out { type filter hook output priority 0; }; \
                      add rule inet t out counter name ipv6_outside_passed'; ping -c 1 -W 1 127.0.0.1");
            let counters = nfnetlink::counters("t").unwrap();
            assert_eq!(counters["ipv6_outside_passed"], 2);
            assert_eq!(counts_of(&counters)[3].passed, 2);
            ns.shell("nft delete chain inet t out");
            assert_eq!(nft::list(&ns.paths, Family::Inet, "t").unwrap(), listing);
        });
    }
}
