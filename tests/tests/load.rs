//! `lostlove-load` against a real server: what it plays, and that it says when something is wrong.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::process::{Command, Output};

use lostlove_tests::programs::program;
use lostlove_tests::{Driver, skip};
use tempfile::TempDir;

/// What the tool says and how it ends, or nothing where it cannot run.
fn play(arguments: &[&str]) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return None;
    }
    let server = Driver::of_server().server();
    let mut command = Command::new(program("lostlove-load"));
    command.arg("--bin-dir").arg(server.parent().unwrap());
    command.arg("--program").arg(server.file_name().unwrap());
    Some(command.args(arguments).output().unwrap())
}

#[test]
fn every_step_is_played_and_every_packet_is_checked() {
    let dir = TempDir::new().unwrap();
    let [markdown, svg] = ["report.md", "report.svg"].map(|name| dir.path().join(name));
    let Some(output) = play(&[
        "--quiet",
        "--clients=20",
        "--markdown",
        markdown.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
        "traffic:way=both,size=64/1400,rate=2000,seconds=1",
        "traffic:way=cross,active=10,rate=500,seconds=1",
        "stall:clients=2,way=down,rate=500,seconds=1",
        "churn:rate=20,seconds=1",
        "restart",
        "traffic:way=down,rate=500,pings=0,seconds=1",
        "hold:seconds=1",
    ]) else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    let tables = fs::read_to_string(markdown).unwrap();
    for step in ["storm", "traffic", "stall", "churn", "restart", "hold"] {
        assert!(
            tables.contains(&format!("| {step} |")),
            "{step} in {tables}"
        );
    }
    assert!(
        tables.contains("was one that was sent, once, in order"),
        "{tables}"
    );
    let traffic = row(&tables, "traffic");
    assert!(number(&traffic, "packets/s") > 1000.0, "{traffic:?}");
    assert!(number(&traffic, "lost, %") < 10.0, "{traffic:?}");
    assert!(number(&traffic, "sessions lost") < 1.0, "{tables}");
    assert!(number(&traffic, "bystander's p99") > 0.0, "{traffic:?}");
    assert!(
        number(&row(&tables, "churn"), "others lost") < 1.0,
        "{tables}"
    );
    assert!(
        number(&row(&tables, "churn"), "handshakes") > 5.0,
        "{tables}"
    );
    assert!(
        number(&row(&tables, "restart"), "handshakes") >= 20.0,
        "{tables}"
    );
    assert!(fs::read_to_string(svg).unwrap().ends_with("</svg>\n"));
}

#[test]
fn clients_that_are_not_let_in_are_counted_and_the_reason_is_said() {
    let Some(output) = play(&[
        "--quiet",
        "--clients=20",
        "--set=server.max_connections=15",
        "storm:seconds=2",
    ]) else {
        return;
    };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("after 2 s 15 of 20 clients are up"), "{said}");
    assert!(said.contains("peer_too_many_sessions: 5"), "{said}");
}

/// Names and values of the first step of a kind.
fn row(tables: &str, kind: &str) -> Vec<(String, String)> {
    let mut lines = tables.lines();
    let head = format!("| {kind} |");
    let names = lines.find(|line| line.starts_with(&head)).unwrap();
    let values = lines.nth(1).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    cells(names).into_iter().zip(cells(values)).collect()
}

fn number(row: &[(String, String)], name: &str) -> f64 {
    let (_, value) = row.iter().find(|(key, _)| key == name).unwrap();
    value.parse().unwrap()
}
