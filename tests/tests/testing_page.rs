//! What the documentation and the table of mutants say about tests is true: they exist.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use lostlove_tests::programs::workspace;
use serde::Deserialize;

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

/// What `tests/mutants.toml` says of a fault.
#[derive(Deserialize)]
struct Mutant {
    breaks: String,
    #[serde(rename = "crate", default = "core")]
    of: String,
    file: String,
    old: String,
    #[serde(default = "once")]
    times: usize,
    test: String,
}

fn core() -> String {
    "lostlove-core".to_owned()
}

const fn once() -> usize {
    1
}

fn mutants() -> Vec<Mutant> {
    let table = fs::read_to_string(workspace().join("tests/mutants.toml")).unwrap();
    let mut table: HashMap<String, Vec<Mutant>> = toml::from_str(&table).unwrap();
    table.remove("mutant").unwrap()
}

/// The file of the innermost of nested modules that has one, and the modules within that file.
fn module<'a>(folder: &Path, modules: &'a [&'a str]) -> (String, &'a [&'a str]) {
    for depth in (1..=modules.len()).rev() {
        let (outer, inner) = modules.split_at(depth);
        let path = outer.join("/");
        for file in [format!("{path}.rs"), format!("{path}/mod.rs")] {
            if let Ok(text) = fs::read_to_string(folder.join(file)) {
                return (text, inner);
            }
        }
    }
    (fs::read_to_string(folder.join("lib.rs")).unwrap(), modules)
}

/// Whether a test is in the module that its name begins with.
fn is_there(folder: &Path, test: &str) -> bool {
    let (modules, name) = test.rsplit_once("::").unwrap();
    let modules: Vec<_> = modules.split("::").collect();
    let (text, inner) = module(folder, &modules);
    let has = |inner: &&str| text.contains(&format!("mod {inner} {{"));
    inner.iter().all(has) && text.contains(&format!("fn {name}("))
}

/// Else it is noticed only by who tries all of them, which takes hours.
#[test]
fn every_mutant_has_its_place_in_the_code_and_its_test() {
    let mutants = mutants();
    assert!(mutants.len() > 200, "{}", mutants.len());
    for mutant in &mutants {
        let Mutant { breaks, old, .. } = mutant;
        let file = fs::read_to_string(workspace().join(&mutant.file)).unwrap_or_default();
        let times = file.matches(old).count();
        assert_eq!(times, mutant.times, "{breaks}: {old:?} in {}", mutant.file);
        let folder = mutant.of.strip_prefix("lostlove-").unwrap();
        let source = workspace().join(folder).join("src");
        let is_there = is_there(&source, &mutant.test);
        assert!(is_there, "{breaks}: no test {}", mutant.test);
    }
}

/// `docs/evidence.md` shows the table as `tests/mutants.py --table` prints it.
#[test]
fn the_page_of_evidence_shows_every_mutant() {
    let page = fs::read_to_string(workspace().join("docs/evidence.md")).unwrap();
    let shown: Vec<_> = page
        .lines()
        .filter(|it| it.contains("| `lostlove-"))
        .collect();
    let mutants = mutants();
    let rows = mutants
        .iter()
        .map(|it| format!("| {} | `{}`: `{}` |", it.breaks, it.of, it.test));
    assert_eq!(shown, rows.collect::<Vec<_>>());
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
