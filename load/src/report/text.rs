//! The report for a terminal.

use std::fmt::Write as _;

use super::Report;

/// Names and values, one below the other.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("{}\n", report.title);
    let widths = report
        .sections
        .iter()
        .flat_map(|section| &section.facts)
        .map(|(name, _)| name.len());
    let width = widths.max().unwrap_or(0);
    for section in &report.sections {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{}", section.kind);
        for (name, value) in &section.facts {
            let _ = writeln!(text, "  {name:width$}  {value}");
        }
    }
    let _ = writeln!(text, "\n{}", report.verdict());
    for example in &report.examples {
        let _ = writeln!(text, "  {example}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Section;
    use super::*;

    #[test]
    fn values_stand_below_each_other() {
        let mut section = Section::new("storm");
        section.add("clients", 3);
        section.add("all up, s", "0.5");
        let report = Report {
            title: "3 clients".to_owned(),
            sections: vec![section],
            faults: 2,
            examples: vec!["one".to_owned()],
            ..Report::default()
        };
        let expected = "3 clients\n\nstorm\n  clients    3\n  all up, s  0.5\n\n\
                        2 packets arrived that should not have, or not so.\n  one\n";
        assert_eq!(text(&report), expected);
    }
}
