//! What a run does, as the command line says it: `NAME` or `NAME:KEY=VALUE,KEY=VALUE`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::packet::{MAX_LEN, MIN_LEN};

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All clients connect, at once or at a rate, and the time until all are up is taken.
    Storm {
        /// Connections begun per second; none for all at once.
        rate: Option<u64>,
        /// How long it may take.
        limit: Duration,
    },
    /// Sessions do nothing.
    Hold { time: Duration },
    /// Sessions end and come back.
    Churn {
        /// Ends per second.
        rate: u64,
        time: Duration,
    },
    /// The server ends and starts again.
    Restart {
        /// How long it may take until all clients are back.
        limit: Duration,
    },
    /// Packets flow, beside clients that do not read, if there are any.
    Traffic { mix: Mix, stalled: usize },
}

/// Which packets flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) direction: Direction,
    /// Bytes of the packets with their IP headers, one size after the other.
    pub(crate) sizes: Vec<usize>,
    /// How many clients send or get packets; none for all.
    pub(crate) active: Option<usize>,
    /// Packets per second of all of them; none for as fast as they get through.
    pub(crate) rate: Option<u64>,
    /// Packets that may be under way at a time, of all of them, where there is no rate.
    pub(crate) window: u64,
    /// Pings per second of all of them.
    pub(crate) pings: u64,
    /// Pings per second of a client that does nothing else.
    pub(crate) bystander: u64,
    pub(crate) time: Duration,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
    Both,
    Cross,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
            Self::Cross => "cross",
        })
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut keys = Keys::parse(name, rest)?;
        let step = match name {
            "storm" => Self::Storm {
                rate: keys.number("rate", 1..=1_000_000)?,
                limit: keys.seconds("seconds", 120)?,
            },
            "hold" => Self::Hold {
                time: keys.seconds("seconds", 30)?,
            },
            "churn" => Self::Churn {
                rate: keys.number("rate", 1..=100_000)?.unwrap_or(50),
                time: keys.seconds("seconds", 20)?,
            },
            "restart" => Self::Restart {
                limit: keys.seconds("seconds", 120)?,
            },
            "traffic" => Self::Traffic {
                mix: keys.mix()?,
                stalled: 0,
            },
            "stall" => Self::Traffic {
                stalled: keys.number("clients", 1..=1_000_000)?.unwrap_or(1) as usize,
                mix: keys.mix()?,
            },
            _ => {
                return Err(format!(
                    "there is no step `{name}`: expected storm, traffic, hold, churn, restart or stall"
                ));
            }
        };
        keys.finish()?;
        Ok(step)
    }
}

/// The keys of one step that have not been asked for yet.
struct Keys<'a> {
    step: &'a str,
    given: Vec<(&'a str, &'a str)>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn parse(step: &'a str, text: &'a str) -> Result<Self, String> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        let mut given: Vec<(&str, &str)> = Vec::new();
        for pair in pairs {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{step}: `{pair}` is not KEY=VALUE"))?;
            if given.iter().any(|(other, _)| *other == key) {
                return Err(format!("{step}: `{key}` is given twice"));
            }
            given.push((key, value));
        }
        Ok(Self {
            step,
            given,
            known: Vec::new(),
        })
    }

    fn take(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        let at = self.given.iter().position(|(given, _)| *given == key)?;
        Some(self.given.remove(at).1)
    }

    fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, String> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(format!(
                "{}: {key} is `{text}`, expected {} to {}",
                self.step,
                range.start(),
                range.end()
            )),
        }
    }

    fn seconds(&mut self, key: &'static str, default: u64) -> Result<Duration, String> {
        let seconds = self.number(key, 1..=86_400)?.unwrap_or(default);
        Ok(Duration::from_secs(seconds))
    }

    fn mix(&mut self) -> Result<Mix, String> {
        Ok(Mix {
            direction: self.direction()?,
            sizes: self.sizes()?,
            active: self
                .number("active", 1..=1_000_000)?
                .map(|active| active as usize),
            rate: self.number("rate", 1..=10_000_000)?,
            window: self.number("window", 1..=100_000)?.unwrap_or(256),
            pings: self.number("pings", 0..=10_000)?.unwrap_or(50),
            bystander: self.number("bystander", 0..=1000)?.unwrap_or(50),
            time: self.seconds("seconds", 10)?,
        })
    }

    fn direction(&mut self) -> Result<Direction, String> {
        match self.take("way") {
            None | Some("up") => Ok(Direction::Up),
            Some("down") => Ok(Direction::Down),
            Some("both") => Ok(Direction::Both),
            Some("cross") => Ok(Direction::Cross),
            Some(other) => Err(format!(
                "{}: way is `{other}`, expected up, down, both or cross",
                self.step
            )),
        }
    }

    fn sizes(&mut self) -> Result<Vec<usize>, String> {
        let text = self.take("size").unwrap_or("1400");
        let sizes = text.split('/').map(|size| match size.parse() {
            Ok(size) if (MIN_LEN..=MAX_LEN).contains(&size) => Ok(size),
            _ => Err(format!(
                "{}: size has `{size}`, expected {MIN_LEN} to {MAX_LEN}, or several of these with `/` \
                 between them",
                self.step
            )),
        });
        sizes.collect()
    }

    fn finish(self) -> Result<(), String> {
        match self.given.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!(
                "{}: there is no key `{key}`, only {}",
                self.step,
                self.known.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Step>().unwrap_err()
    }

    #[test]
    fn a_name_alone_has_the_defaults() {
        let limit = Duration::from_secs(120);
        assert_eq!("storm".parse(), Ok(Step::Storm { rate: None, limit }));
        assert_eq!("restart".parse(), Ok(Step::Restart { limit }));
        let Ok(Step::Traffic { mix, stalled: 0 }) = "traffic".parse() else {
            panic!("no traffic");
        };
        assert_eq!((mix.direction, mix.sizes), (Direction::Up, vec![1400]));
        assert_eq!((mix.active, mix.rate), (None, None));
    }

    #[test]
    fn a_mix_is_read() {
        let text = "traffic:way=both,size=64/1400/64,active=100,rate=20000,window=9,pings=0,bystander=7,seconds=3";
        let mix = Mix {
            direction: Direction::Both,
            sizes: vec![64, 1400, 64],
            active: Some(100),
            rate: Some(20_000),
            window: 9,
            pings: 0,
            bystander: 7,
            time: Duration::from_secs(3),
        };
        assert_eq!(text.parse(), Ok(Step::Traffic { mix, stalled: 0 }));
    }

    #[test]
    fn stalled_clients_stall() {
        let step = "stall:clients=7,way=down".parse::<Step>();
        assert!(
            matches!(step, Ok(Step::Traffic { stalled: 7, .. })),
            "{step:?}"
        );
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (text, words) in [
            ("strom", "there is no step `strom`"),
            ("hold:time=3", "there is no key `time`, only seconds"),
            ("hold:seconds", "`seconds` is not KEY=VALUE"),
            ("hold:seconds=0", "expected 1 to 86400"),
            ("hold:seconds=1,seconds=2", "`seconds` is given twice"),
            ("traffic:way=left", "expected up, down, both or cross"),
            ("traffic:size=55", "expected 56 to 9000"),
            ("traffic:size=64//64", "size has ``"),
            ("traffic:clients=3", "there is no key `clients`"),
            ("stall:clients=0", "expected 1 to 1000000"),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
