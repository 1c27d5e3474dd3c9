//! Cases 11 and 17: replays every corpus, and every seed.
#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::Path;
use std::{fs, panic};

use lostlove_fuzz::{TARGETS, Target, seeds};

/// Runs one input; the names of those that fail are what a reader of the output needs.
fn survives(run: Target, input: &[u8]) -> bool {
    panic::catch_unwind(|| run(input)).is_ok()
}

fn replay(target: &str) {
    let (_, run) = TARGETS.into_iter().find(|it| it.0 == target).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort_unstable();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let corpus = files.into_iter().map(|path| {
        let input = fs::read(&path).unwrap();
        (path.display().to_string(), input)
    });
    let seeds = seeds::seeds(target).into_iter().enumerate();
    let seeds = seeds.map(|(number, seed)| (format!("seed {number}"), seed));
    let failed: Vec<String> = corpus
        .chain(seeds)
        .filter(|(_, input)| !survives(run, input))
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn wire() {
    replay("wire");
}

#[test]
fn hello() {
    replay("hello");
}

#[test]
fn ip() {
    replay("ip");
}

#[test]
fn sealed() {
    replay("sealed");
}

#[test]
fn endpoint() {
    replay("endpoint");
}

#[test]
fn compression() {
    replay("compression");
}

#[test]
fn config() {
    replay("config");
}
