//! What was found, for a person and for a program.

use serde::Serialize;

use super::finding::{Finding, Level};
use crate::plain;

/// The version of the JSON object: it grows when something means something else.
const VERSION: u32 = 1;
/// Below the level, so that a cure can be told from what was found.
const INDENT: &str = "         ";

/// A line for each thing that was looked at, and one below it with what helps.
pub(super) fn text(findings: &[Finding]) -> String {
    let mut page = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok       ",
            Level::Warning => "warning  ",
            Level::Error => "error    ",
        };
        let line = format!("{level}{}: {}", finding.subject, finding.found);
        page.push_str(&plain::line(&line));
        page.push('\n');
        if let Some(cure) = &finding.cure {
            page.push_str(&format!("{INDENT}cure: {}\n", plain::line(cure)));
        }
    }
    page
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    doctor: Doctor<'a>,
}

#[derive(Serialize)]
struct Doctor<'a> {
    program_version: &'a str,
    errors: usize,
    warnings: usize,
    findings: &'a [Finding],
}

/// One object, in a line.
///
/// # Errors
///
/// None that anybody has seen: everything in it is text.
pub(super) fn json(findings: &[Finding]) -> serde_json::Result<String> {
    let count = |level| findings.iter().filter(|it| it.level == level).count();
    let document = Document {
        version: VERSION,
        doctor: Doctor {
            program_version: env!("CARGO_PKG_VERSION"),
            errors: count(Level::Error),
            warnings: count(Level::Warning),
            findings,
        },
    };
    serde_json::to_string(&document).map(|line| plain::json(&line) + "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::doctor::finding::Look;

    const PAGE: &str = include_str!("../../../docs/operations.md");

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok(Look::TunDriver, "/dev/net/tun", "can be opened"),
            Finding::error(
                Look::Port,
                "port 8443",
                "another program listens on 0.0.0.0:8443, so a server cannot start",
                "sudo ss -ltnp 'sport = :8443'",
            ),
        ]
    }

    #[test]
    fn each_thing_has_a_line_and_what_is_wrong_has_its_cure_below() {
        let mut findings = findings();
        findings.push(Finding::warning(
            Look::Daemon,
            "a",
            "says \u{1b}[2J\nok",
            "b \u{202e}c\u{200b}",
        ));
        let expected = "\
ok       /dev/net/tun: can be opened
error    port 8443: another program listens on 0.0.0.0:8443, so a server cannot start
         cure: sudo ss -ltnp 'sport = :8443'
warning  a: says \\u{1b}[2J\\u{a}ok
         cure: b \\u{202e}c\\u{200b}
";
        assert_eq!(text(&findings), expected);

        let line = json(&findings).unwrap();
        assert!(line.contains(r#""b \u202ec\u200b""#), "{line}");
    }

    #[test]
    fn the_page_shows_the_object() {
        let (_, block) = PAGE.split_once("```json\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let shown: Value = serde_json::from_str(block).unwrap();
        let line = json(&findings()).unwrap();
        assert_eq!(line.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), shown);
    }
}
