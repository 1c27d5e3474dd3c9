//! The search in another process's memory.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::needles::Needle;

/// Bytes that in a row are no coincidence. Shorter needles are searched for as a whole.
const WINDOW: usize = 16;
/// Bytes by which a place is looked up.
const HEAD: usize = 8;
/// Bytes that are read at once; more than any needle has.
const CHUNK: usize = 1 << 20;

/// Every window of every needle, in each form that computing with it gives.
pub(crate) struct Windows<'a> {
    /// Which heads there are, by their first three bytes: most places are passed by this alone.
    heads: Vec<bool>,
    places: HashMap<[u8; HEAD], Vec<(Vec<u8>, &'a Needle)>>,
}

impl<'a> Windows<'a> {
    pub(crate) fn new(needles: &'a [Needle]) -> Self {
        let mut windows = Self {
            heads: vec![false; 1 << 24],
            places: HashMap::new(),
        };
        for needle in needles {
            for form in forms(&needle.bytes) {
                for window in form.windows(WINDOW.min(form.len())) {
                    let (head, tail) = window.split_first_chunk().unwrap();
                    windows.heads[index(head)] = true;
                    let places = windows.places.entry(*head).or_default();
                    places.push((tail.to_vec(), needle));
                }
            }
        }
        windows
    }

    /// The names of the needles of which a part is in the writable memory of a process.
    pub(crate) fn search(&self, process: u32) -> io::Result<BTreeSet<String>> {
        let memory = File::open(format!("/proc/{process}/mem"))?;
        let mut found = BTreeSet::new();
        for (name, start, end) in writable(process)? {
            let mut at = start;
            while at < end {
                let mut chunk = vec![0; CHUNK.min((end - at) as usize)];
                memory.read_exact_at(&mut chunk, at)?;
                for (place, needle) in self.search_in(&chunk) {
                    println!("{:#x} {name}: {needle:?}", at + place as u64);
                    found.insert(needle.name.clone());
                }
                // Chunks overlap, so that nothing is cut.
                at += chunk.len() as u64;
                if at < end {
                    at -= WINDOW as u64;
                }
            }
        }
        Ok(found)
    }

    /// Where in `memory` there is a window, and of which needle.
    fn search_in(&self, memory: &[u8]) -> Vec<(usize, &'a Needle)> {
        let heads = memory.windows(HEAD).enumerate();
        let candidates = heads.filter(|(_, head)| self.heads[index(head)]);
        let windows = candidates.flat_map(|(at, head)| {
            let windows = self.places.get(head).into_iter().flatten();
            windows.map(move |(tail, needle)| (at, tail, *needle))
        });
        let whole = windows.filter(|(at, tail, _)| memory[at + HEAD..].starts_with(tail));
        whole.map(|(at, _, needle)| (at, needle)).collect()
    }
}

fn index(head: &[u8]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// A secret as it is, as HMAC pads it, and all of these as the words of SHA-512.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let padded = [0, 0x36, 0x5c].map(|pad| bytes.iter().map(|byte| byte ^ pad).collect());
    let words = padded.each_ref().map(|bytes: &Vec<u8>| {
        let words = bytes.chunks_exact(8).map(|word| word.iter().rev());
        words.flatten().copied().collect()
    });
    let long = |form: &Vec<u8>| form.len() >= WINDOW || form.len() == bytes.len();
    padded.into_iter().chain(words).filter(long).collect()
}

/// The areas of memory that a process can write to: name, start and end.
fn writable(process: u32) -> io::Result<Vec<(String, u64, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let area = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let writable = fields.next()?.starts_with("rw");
        let name = fields.nth(3).unwrap_or("anonymous memory").to_owned();
        let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).unwrap());
        writable.then_some((name, start, end))
    };
    Ok(maps.lines().filter_map(area).collect())
}
