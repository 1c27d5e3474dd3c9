//! What `docs/testing.md` says about tests is true: they exist.

use std::fs;

use lostlove_tests::programs::workspace;

/// The rows of the page's tables: number of the case, and the words in backquotes.
fn rows(page: &str) -> Vec<(u32, Vec<&str>)> {
    let rows = page.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        let words = rest.split('`').skip(1).step_by(2).collect();
        Some((number.parse().ok()?, words))
    });
    rows.collect()
}

#[test]
fn every_case_has_one_row() {
    let page = fs::read_to_string(workspace().join("docs/testing.md")).unwrap();
    let numbers: Vec<u32> = rows(&page).into_iter().map(|(number, _)| number).collect();
    let gaps = [13, 29, 43, 47, 52, 68, 72, 92, 99, 100, 107, 110, 112];
    let expected: Vec<u32> = (1..=79)
        .chain(88..=115)
        .filter(|number| !gaps.contains(number))
        .collect();
    assert_eq!(numbers, expected);
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = fs::read_to_string(workspace().join("docs/testing.md")).unwrap();
    let mut missing = Vec::new();
    for (number, words) in rows(&page) {
        let mut file = String::new();
        for word in words {
            if word.contains('/') {
                file = fs::read_to_string(workspace().join(word)).unwrap_or_default();
            }
            let is_there = match word.contains('/') {
                true => !file.is_empty(),
                false => file.contains(&format!("fn {word}(")),
            };
            if !is_there {
                missing.push(format!("case {number}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
