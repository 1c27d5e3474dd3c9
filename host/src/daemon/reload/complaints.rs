//! How often the log is told that the files cannot be used.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use tracing::{debug, error};

use super::demands::Scope;

/// The same complaint about peers is said so often at most.
const AGAIN: Duration = Duration::from_secs(10);
/// So many of these are said within that time at most, whatever they say: a script that adds peers, one
/// after the other, may get another one each time.
const MANY: usize = 10;

/// What was said of files that cannot be used. A script that wants them read again and again, some forty
/// times a second, is told itself each time.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// When, and a digest of what; none once it was mended.
    said: Vec<(Instant, Option<u64>)>,
    /// Those that were left out since.
    suppressed: u64,
}

impl Complaints {
    /// Logs what is wrong, if it is to be said: always where all was to be read, which is once a second at
    /// most, as a signal has no other answer.
    pub(super) fn complain(&mut self, config: &str, problem: &str, scope: Scope, now: Instant) {
        let admitted = match scope {
            Scope::All => Some(std::mem::take(&mut self.suppressed)),
            Scope::Peers => self.admit(problem, now),
        };
        let Some(suppressed) = admitted else {
            debug!(config, problem, "the configuration cannot be used");
            return;
        };
        for line in problem.lines() {
            error!("{line}");
        }
        error!(
            config,
            suppressed = (suppressed > 0).then_some(suppressed),
            "the configuration cannot be used, and nothing has changed"
        );
    }

    /// The files could be used. What is wrong with them after that is news.
    pub(super) fn handle_mended(&mut self) {
        for (_, digest) in &mut self.said {
            *digest = None;
        }
        self.suppressed = 0;
    }

    /// Whether it is to be said, and then how many were left out before.
    fn admit(&mut self, problem: &str, now: Instant) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        problem.hash(&mut hasher);
        let digest = Some(hasher.finish());
        self.said.retain(|(at, _)| now < *at + AGAIN);
        let is_known = self.said.iter().any(|(_, known)| *known == digest);
        if is_known || self.said.len() >= MANY {
            self.suppressed += 1;
            return None;
        }
        self.said.push((now, digest));
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::capture;

    const SECOND: Duration = Duration::from_secs(1);

    /// Forty times a second, for a minute.
    #[test]
    fn a_file_that_is_wrong_and_asked_for_in_a_loop_is_complained_of_every_ten_seconds() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let mut said = Vec::new();
        for n in 0..2400 {
            if let Some(suppressed) = complaints.admit("a.toml: no key", start + SECOND * n / 40) {
                said.push((n, suppressed));
            }
        }
        assert_eq!(
            said,
            [
                (0, 0),
                (400, 399),
                (800, 399),
                (1200, 399),
                (1600, 399),
                (2000, 399)
            ]
        );
    }

    #[test]
    fn another_complaint_is_said_at_once_and_ten_of_them_in_ten_seconds() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        for n in 0..MANY {
            assert_eq!(complaints.admit(&format!("{n}"), start), Some(0));
            assert_eq!(complaints.admit("0", start), None);
            complaints.suppressed = 0;
        }
        assert_eq!(complaints.admit("another", start + SECOND), None);
        assert_eq!(complaints.admit("0", start + AGAIN), Some(1));
        assert_eq!(complaints.admit("0", start + AGAIN), None);
    }

    #[test]
    fn what_is_wrong_again_after_it_was_mended_is_said_at_once_but_not_in_a_loop() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        let said = (0..100).filter(|_| {
            let is_said = complaints.admit("a.toml: no key", now).is_some();
            complaints.handle_mended();
            is_said
        });
        assert_eq!(said.count(), MANY);
    }

    #[test]
    fn a_complaint_has_its_lines_and_says_how_many_were_left_out() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let mut at = |after| {
            let problem = "a.toml:1:2: no\na.toml:3:4: no";
            capture(|| complaints.complain("/etc/a.toml", problem, Scope::Peers, after))
        };
        let first = at(start);
        assert_eq!(
            first,
            "<3>ERROR a.toml:1:2: no\n<3>ERROR a.toml:3:4: no\n\
             <3>ERROR the configuration cannot be used, and nothing has changed config=/etc/a.toml\n"
        );
        for n in 1..4 {
            let text = at(start + SECOND * n);
            assert!(!text.contains("ERROR"), "{text}");
        }
        let again = at(start + AGAIN);
        assert!(
            again.ends_with("changed config=/etc/a.toml suppressed=3\n"),
            "{again}"
        );
    }

    /// `SIGHUP` has no other answer.
    #[test]
    fn who_asks_for_all_finds_an_answer_in_the_log_each_time() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        assert_eq!(complaints.admit("no key", now), Some(0));
        assert_eq!(complaints.admit("no key", now), None);
        for left_out in [" suppressed=1", ""] {
            let text = capture(|| complaints.complain("a.toml", "no key", Scope::All, now));
            let end = format!("nothing has changed config=a.toml{left_out}\n");
            assert!(
                text.starts_with("<3>ERROR no key\n") && text.ends_with(&end),
                "{text}"
            );
        }
    }
}
