//! Whatever a file says, the answer is settings or problems.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::testing::{Folder, key};

const SERVER: &str = include_str!("../../../examples/server.toml");
const CLIENT: &str = include_str!("../../../examples/client.toml");
const CASES: u32 = 400;

/// Fragments that are likely to be read as something.
const FRAGMENTS: [&str; 24] = [
    "[[peers]]\n",
    "[peers]\n",
    "peers = 1\n",
    "[server]\n",
    "[network.mtu]\n",
    "\n",
    "#",
    "'",
    "\"",
    "[",
    "]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "-1",
    "1e9",
    "0x",
    "99999999999999999999",
    "\u{0}",
    "\u{fffd}",
    "::/0",
    "true",
];

/// The same cases in every run.
fn runner() -> TestRunner {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    TestRunner::new_with_rng(config, rng)
}

/// An example with all its keys uncommented.
fn uncommented(example: &str) -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    let text: String = example.lines().map(uncomment).collect();
    text.replace("44 characters of base64", &key(3).public_key().to_string())
}

/// Cuts some bytes at each place and puts a fragment there.
fn mutate(text: &str, edits: &[(usize, usize, usize)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (place, length, fragment) in edits {
        let start = place % (chars.len() + 1);
        let end = (start + length).min(chars.len());
        let fragment = FRAGMENTS[fragment % FRAGMENTS.len()];
        chars.splice(start..end, fragment.chars());
    }
    chars.into_iter().collect()
}

fn edits() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    proptest::collection::vec((any::<usize>(), 0..12_usize, any::<usize>()), 1..5)
}

#[test]
fn mutated_files_never_panic_and_never_fail_without_a_reason() {
    let folder = Folder::new();
    let (server, client) = (uncommented(SERVER), uncommented(CLIENT));
    let check = |edits: Vec<(usize, usize, usize)>| {
        let results = [
            folder.server(&mutate(&server, &edits)).map(drop),
            folder.client(&mutate(&client, &edits)).map(drop),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            prop_assert!(!error.problems().is_empty());
            prop_assert!(error.problems().iter().all(|it| !it.message.is_empty()));
        }
        Ok(())
    };
    runner().run(&edits(), check).unwrap();
}

#[test]
fn arbitrary_text_never_panics() {
    let folder = Folder::new();
    let check = |text: String| {
        drop(folder.server(&text));
        drop(folder.client(&text));
        Ok(())
    };
    runner().run(&any::<String>(), check).unwrap();
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let folder = Folder::new();
    let deep = "[".repeat(200_000);
    for text in [
        format!("a = {deep}"),
        format!("a = {}", "{a=".repeat(200_000)),
        deep,
    ] {
        let error = folder.server(&text).unwrap_err();
        assert!(!error.problems().is_empty());
    }
}
