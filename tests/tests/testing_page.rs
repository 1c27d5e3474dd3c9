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
        .chain([85])
        .chain(88..=115)
        .filter(|number| !gaps.contains(number))
        .collect();
    assert_eq!(numbers, expected);
}

/// Those of the words, files and then names of tests in them, that are not there.
fn missing(words: &[&str]) -> Vec<String> {
    let mut file = String::new();
    let is_missing = |word: &&&str| match word.contains('/') {
        true => {
            file = fs::read_to_string(workspace().join(word)).unwrap_or_default();
            file.is_empty()
        }
        false => !file.contains(&format!("fn {word}(")),
    };
    let missing = words.iter().filter(is_missing);
    missing.map(|word| (*word).to_owned()).collect()
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = fs::read_to_string(workspace().join("docs/testing.md")).unwrap();
    let missing: Vec<_> = rows(&page)
        .iter()
        .flat_map(|(number, words)| {
            let named = move |word| format!("case {number}: {word}");
            missing(words).into_iter().map(named)
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The last column of who can do what.
#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let page = fs::read_to_string(workspace().join("docs/protocol.md")).unwrap();
    let section = page.split_once("### Who can do what").unwrap().1;
    let table = section.split_once("###").unwrap().0;
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter(|row| row.contains('`'))
        .collect();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let held_by = row.rsplit(" | ").next().unwrap();
        let words: Vec<_> = held_by.split('`').skip(1).step_by(2).collect();
        assert!(!words.is_empty(), "{row}");
        assert_eq!(missing(&words), [""; 0], "{row}");
    }
}

/// Both where it runs and where people read of it.
#[test]
fn every_test_of_either_driver_is_in_the_driver_matrix() {
    let of_both = ["Lab::", "Driver::of_"];
    let names: Vec<String> = fs::read_dir(workspace().join("tests/tests"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).ok()?;
            let name = path.file_stem()?.to_str()?.to_owned();
            let is_this = name == "testing_page";
            (!is_this && of_both.iter().any(|it| text.contains(it))).then_some(name)
        })
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for page in [".ci/checks", "docs/testing.md"] {
        let text = fs::read_to_string(workspace().join(page)).unwrap();
        let words: Vec<_> = text
            .split(|c: char| c.is_whitespace() || "`\"".contains(c))
            .collect();
        let is_listed = |name: &str| words.windows(2).any(|pair| pair == ["--test", name]);
        let missing: Vec<_> = names.iter().filter(|name| !is_listed(name)).collect();
        assert!(missing.is_empty(), "{page}: {missing:?}");
    }
}
