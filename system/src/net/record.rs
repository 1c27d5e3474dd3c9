//! What a record of changes says: lines of JSON, of which the first says whose it is.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::change::Change;
use super::mark::Tunnel;
use super::place::Place;

/// A line of a record.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// The first line.
    Owner(Owner),
    /// About to be made.
    Made(Change),
    /// Taken back.
    Undone(Change),
    /// What other clients have to know of this one, from now on.
    Tunnel(Tunnel),
}

impl Entry {
    /// The line, with its end.
    pub(super) fn line(&self) -> serde_json::Result<String> {
        serde_json::to_string(self).map(|line| line + "\n")
    }
}

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The process.
    pub(super) pid: u32,
    /// Where its changes are in force.
    pub(super) place: Place,
}

/// The changes in force, each once, in the order in which they were made. There may be tens of
/// thousands of routes: nothing here looks at all of them to find one.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    in_order: BTreeMap<u64, Change>,
    numbers: HashMap<Change, u64>,
    next: u64,
}

impl Changes {
    /// Whether the change is in force.
    pub(super) fn contains(&self, change: &Change) -> bool {
        self.numbers.contains_key(change)
    }

    /// The changes, the oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.in_order.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    /// Adds a change, the newest; one that is in force already stays where it is.
    pub(super) fn insert(&mut self, change: Change) {
        if self.contains(&change) {
            return;
        }
        self.numbers.insert(change.clone(), self.next);
        self.in_order.insert(self.next, change);
        self.next += 1;
    }

    pub(super) fn remove(&mut self, change: &Change) {
        if let Some(number) = self.numbers.remove(change) {
            self.in_order.remove(&number);
        }
    }

    /// Keeps those that `is_kept`.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Change) -> bool) {
        self.in_order.retain(|_, change| is_kept(change));
        self.numbers.retain(|change, _| is_kept(change));
    }
}

/// A record as it was read.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// None if it is empty, or its first line does not say.
    pub(super) owner: Option<Owner>,
    pub(super) changes: Changes,
    /// What other clients have to know of this one.
    pub(super) tunnel: Option<Tunnel>,
    /// The first thing in it that no process of ours has written.
    pub(super) damage: Option<String>,
    /// Bytes of whole lines. What follows them is a line that a process died of writing, or had no
    /// room for; what it was to say was never done.
    pub(super) whole: usize,
}

impl Record {
    /// Replays a record. Lines that cannot be read are damage, and left out.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut record = Self::default();
        let lines = bytes.split_inclusive(|&byte| byte == b'\n');
        for (index, line) in lines.take_while(|line| line.ends_with(b"\n")).enumerate() {
            record.whole += line.len();
            if let Err(problem) = record.take(index, line) {
                let number = index + 1;
                let problem = format!("line {number}: {problem}");
                record.damage.get_or_insert(problem);
            }
        }
        record
    }

    fn take(&mut self, index: usize, line: &[u8]) -> Result<(), String> {
        match serde_json::from_slice(line) {
            Ok(Entry::Owner(owner)) if index == 0 => self.owner = Some(owner),
            Ok(Entry::Owner(_)) => {
                return Err("whose it is can stand in the first line alone".to_owned());
            }
            Ok(_) if index == 0 => return Err("the first line does not say whose it is".to_owned()),
            Ok(Entry::Made(change)) => self.changes.insert(change),
            Ok(Entry::Undone(change)) => self.changes.remove(&change),
            Ok(Entry::Tunnel(tunnel)) => self.tunnel = Some(tunnel),
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_was_made_and_not_undone_is_in_force_in_its_order() {
        let record = Record::parse(&text(&[
            Entry::Owner(owner()),
            Entry::Made(nft("a")),
            Entry::Made(nft("b")),
            Entry::Made(nft("c")),
            Entry::Made(nft("a")),
            Entry::Undone(nft("b")),
        ]));
        assert_eq!(record.owner, Some(owner()));
        assert_eq!(record.damage, None);
        let changes: Vec<_> = record.changes.iter().collect();
        assert_eq!(changes, [&nft("a"), &nft("c")]);
        assert!(record.changes.contains(&nft("c")) && !record.changes.contains(&nft("b")));
    }

    #[test]
    fn a_line_cut_short_is_no_damage_and_in_the_middle_it_is() {
        let mut bytes = text(&[Entry::Owner(owner()), Entry::Made(nft("a"))]);
        let whole = bytes.len();
        bytes.extend(b"{\"made\":{\"nft\":{\"tab");
        let record = Record::parse(&bytes);
        assert_eq!((record.damage, record.whole), (None, whole));
        assert_eq!(record.changes.iter().count(), 1);

        bytes.extend(b"\n");
        bytes.extend(text(&[Entry::Made(nft("b"))]));
        let record = Record::parse(&bytes);
        assert!(record.damage.unwrap().starts_with("line 3: "));
        assert_eq!(record.changes.iter().count(), 2);
    }

    #[test]
    fn a_record_that_does_not_begin_with_its_owner_is_damaged() {
        let headless = text(&[Entry::Made(nft("a")), Entry::Owner(owner())]);
        for bytes in [
            &headless[..],
            b"\n",
            b"\0\0\0\0\n",
            b"{\"owner\":{\"pid\":1}}\n",
        ] {
            let record = Record::parse(bytes);
            assert!(
                record.damage.is_some() && record.owner.is_none(),
                "{bytes:?}"
            );
        }
        let empty = Record::parse(b"");
        assert!(empty.damage.is_none() && empty.owner.is_none());
    }

    /// A search through all of them would take minutes.
    #[test]
    fn any_of_very_many_changes_is_found_at_once() {
        let all: Vec<_> = (0..100_000).map(|n: u32| nft(&n.to_string())).collect();
        let start = Instant::now();
        let mut changes = Changes::default();
        for change in &all {
            changes.insert(change.clone());
        }
        let (old, new) = all.split_at(50_000);
        for change in old.iter().chain(new.iter().rev()) {
            changes.remove(change);
        }
        assert!(changes.is_empty());
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    #[test]
    fn some_changes_can_be_kept() {
        let mut changes = Changes::default();
        for name in ["a", "b", "c"] {
            changes.insert(nft(name));
        }
        changes.retain(|change| *change != nft("b"));
        assert!(changes.iter().eq([&nft("a"), &nft("c")]));
        assert!(!changes.contains(&nft("b")));
        changes.retain(|_| false);
        assert!(changes.is_empty());
    }

    fn text(entries: &[Entry]) -> Vec<u8> {
        let lines = entries.iter().map(|entry| entry.line().unwrap());
        lines.collect::<String>().into_bytes()
    }

    fn owner() -> Owner {
        Owner {
            pid: 7,
            place: Place {
                boot: "a".to_owned(),
                namespace: "1".to_owned(),
            },
        }
    }

    fn nft(table: &str) -> Change {
        Change::Nft {
            table: table.to_owned(),
        }
    }
}
