//! What `README.md` shows of a measurement is what was measured.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lostlove_tests::programs::workspace;

/// The result whose picture the page shows, without the end of its file's name.
fn result_of(page: &str) -> Option<String> {
    let (before, _) = page.split_once(".svg)")?;
    let (_, result) = before.rsplit_once("](")?;
    Some(result.to_owned())
}

/// `bench/run --plot` of a result, which draws into a folder.
fn plot(result: &str, folder: &Path) -> std::io::Result<Output> {
    Command::new("python3")
        .arg(workspace().join("bench/run"))
        .arg("--plot")
        .arg(workspace().join(format!("{result}.json")))
        .arg("--output")
        .arg(folder.join("picture"))
        .stdin(Stdio::null())
        .output()
}

#[test]
fn the_comparison_is_that_of_the_result_it_names() {
    let page = fs::read_to_string(workspace().join("README.md")).unwrap();
    let result = result_of(&page).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = plot(&result, folder.path()).unwrap();
    // Without matplotlib it fails after the table.
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let (_, table) = printed.split_once("\n\n").expect(&errors);
    assert!(page.contains(table), "README.md does not have\n{table}");

    let picture = fs::read_to_string(workspace().join(format!("{result}.svg"))).unwrap();
    let cells = table
        .lines()
        .skip(2)
        .flat_map(|row| row.split(" | ").skip(1));
    let numbers: Vec<&str> = cells
        .flat_map(|cell| cell.trim_end_matches(" |").split(" / "))
        .collect();
    assert!(!numbers.is_empty());
    for number in numbers {
        assert!(
            picture.contains(&format!(">{number}</text>")),
            "no {number} in {result}.svg"
        );
    }
}
