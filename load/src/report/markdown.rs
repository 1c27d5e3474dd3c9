//! The report as Markdown: a table for each kind of step, with a row for each step.

use std::fmt::Write as _;

use super::{Report, Section};

/// All tables.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("{}\n", escaped(&report.title));
    for table in report.tables() {
        write_table(&mut text, table);
    }
    // Writing to a string does not fail.
    let _ = writeln!(text, "\n{}", report.verdict());
    for example in &report.examples {
        let _ = writeln!(text, "- {}", escaped(example));
    }
    text
}

fn write_table(text: &mut String, table: &[Section]) {
    let Some(first) = table.first() else { return };
    let _ = write!(text, "\n| {} |", first.kind);
    for (name, _) in &first.facts {
        let _ = write!(text, " {} |", escaped(name));
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(first.facts.len()));
    for (index, section) in (1..).zip(table) {
        let _ = write!(text, "| {index} |");
        for (_, value) in &section.facts {
            let _ = write!(text, " {} |", escaped(value));
        }
        text.push('\n');
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(kind: &'static str, value: &str) -> Section {
        let mut section = Section::new(kind);
        section.add("a|b", value);
        section
    }

    #[test]
    fn steps_of_one_kind_are_rows_of_one_table() {
        let report = Report {
            title: "x".to_owned(),
            sections: vec![
                section("hold", "1"),
                section("hold", "2|3"),
                section("churn", "4"),
            ],
            ..Report::default()
        };
        let expected = "x\n\n| hold | a\\|b |\n|---|--:|\n| 1 | 1 |\n| 2 | 2\\|3 |\n\
                        \n| churn | a\\|b |\n|---|--:|\n| 1 | 4 |\n\n";
        let text = markdown(&report);
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn other_columns_are_another_table() {
        let mut wider = section("hold", "2");
        wider.add("c", "3");
        let report = Report {
            sections: vec![section("hold", "1"), wider],
            ..Report::default()
        };
        assert_eq!(markdown(&report).matches("|---|").count(), 2);
    }
}
