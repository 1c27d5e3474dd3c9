//! What a run has found: tables and curves, and how they are shown.

mod markdown;
mod svg;
mod text;

use std::time::Duration;

pub(crate) use markdown::markdown;
pub(crate) use svg::svg;
pub(crate) use text::text;

/// What one step has found: names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    /// The kind of step; those of one kind that follow each other are rows of one table.
    pub(crate) kind: &'static str,
    pub(crate) facts: Vec<(&'static str, String)>,
}

impl Section {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self {
            kind,
            facts: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, name: &'static str, value: impl ToString) {
        self.facts.push((name, value.to_string()));
    }
}

/// The state of things at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Since the beginning of the run.
    pub(crate) at: Duration,
    pub(crate) sessions: f64,
    /// The server's, in per cent of one core, since the last sample.
    pub(crate) cpu_percent: f64,
    /// The server's, in MiB.
    pub(crate) memory: f64,
    /// What came through the tunnel since the last sample, in Mbit/s of IP.
    pub(crate) megabits: f64,
}

/// All that a run has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// What was run, for whoever reads the tables.
    pub(crate) title: String,
    pub(crate) sections: Vec<Section>,
    pub(crate) samples: Vec<Sample>,
    /// When each step began.
    pub(crate) marks: Vec<(Duration, String)>,
    /// What came back and should not have: how much, and examples.
    pub(crate) faults: u64,
    pub(crate) examples: Vec<String>,
}

impl Report {
    /// Sections of one kind and with the same names that follow each other.
    fn tables(&self) -> Vec<&[Section]> {
        let names = |section: &Section| -> Vec<&str> {
            section.facts.iter().map(|(name, _)| *name).collect()
        };
        self.sections
            .chunk_by(|a, b| a.kind == b.kind && names(a) == names(b))
            .collect()
    }

    /// What is to be said of the check of what came back.
    fn verdict(&self) -> String {
        match self.faults {
            0 => "Every packet that arrived was one that was sent, once, in order and unaltered."
                .to_owned(),
            faults => format!("{faults} packets arrived that should not have, or not so."),
        }
    }
}
