//! What went wrong, and the story that led there.

use core::fmt;
use core::hash::Hash as _;

use super::World;

/// Lines of the story kept.
const STORY_LEN: usize = 60;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something happened that must never happen.
    Safety,
    /// Something did not happen that must, once all faults have stopped.
    Progress,
    /// The same seed gave two different runs.
    Determinism,
    /// The code under test panicked.
    Panic,
}

/// What went wrong, and what came before.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The kind.
    pub kind: Kind,
    /// What it is.
    pub what: String,
    /// The options drawn and the last events.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} failure: {}", self.kind, self.what)?;
        self.story
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl World {
    /// A line for whoever has to understand a failure.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>14.6} {}", self.now.as_nanos() as f64 / 1e9, line());
        line.hash(&mut self.trace);
        if self.is_verbose {
            eprint_line(&line);
        }
        if self.story.len() == STORY_LEN {
            self.story.pop_front();
        }
        self.story.push_back(line);
    }

    pub(crate) fn failure(&self, kind: Kind, what: impl Into<String>) -> Failure {
        let drawn = format!("{:?}", self.options);
        Failure {
            kind,
            what: what.into(),
            story: [drawn]
                .into_iter()
                .chain(self.story.iter().cloned())
                .collect(),
        }
    }

    pub(crate) fn unsafe_if(&self, complaint: Option<String>) -> Result<(), Failure> {
        complaint.map_or(Ok(()), |what| Err(self.failure(Kind::Safety, what)))
    }
}

fn eprint_line(line: &str) {
    use std::io::Write as _;
    // Nothing can be done about a closed stream.
    let _ = writeln!(std::io::stderr(), "{line}");
}
