//! Until when a peer may connect.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;
use toml::value::{Date, Datetime, Offset, Time};

use crate::reader::value::expected;

const EXPECTED: &str = "a date such as 2027-01-31 or a time such as 2027-01-31T18:00:00Z";
const SECONDS_PER_DAY: i64 = 86_400;
const SECONDS_PER_MINUTE: i64 = 60;
/// From 1 March of the year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;

/// A day, which counts to its end in UTC, or a moment: in UTC, unless it names its offset from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    written: Datetime,
    unix_time: Duration,
}

/// A text that names no day and no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct InvalidExpiry;

impl Expiry {
    /// The first moment after it, as Unix time.
    pub const fn unix_time(self) -> Duration {
        self.unix_time
    }

    fn of(written: Datetime) -> Option<Self> {
        let day = days_since_1970(&written.date?);
        let seconds = match (&written.time, &written.offset) {
            (None, _) => (day + 1) * SECONDS_PER_DAY,
            (Some(time), offset) => {
                let offset = match offset {
                    Some(Offset::Custom { minutes }) => i64::from(*minutes),
                    Some(Offset::Z) | None => 0,
                };
                day * SECONDS_PER_DAY + seconds_of(time) - offset * SECONDS_PER_MINUTE
            }
        };
        let unix_time = Duration::from_secs(u64::try_from(seconds).ok()?);
        Some(Self { written, unix_time })
    }
}

impl FromStr for Expiry {
    type Err = InvalidExpiry;

    fn from_str(text: &str) -> Result<Self, InvalidExpiry> {
        let written = text.parse().map_err(|_| InvalidExpiry)?;
        Self::of(written).ok_or(InvalidExpiry)
    }
}

/// As it was written.
impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

/// The value of `expires`.
pub(crate) fn expiry(value: &DeValue<'_>) -> Result<Expiry, String> {
    let written = value.as_datetime().copied();
    let expiry = written.and_then(Expiry::of);
    expiry.ok_or_else(|| match value.as_str() {
        Some(text) if text.parse::<Expiry>().is_ok() => {
            format!("{}; leave the quotes out", expected(EXPECTED, value))
        }
        _ => expected(EXPECTED, value),
    })
}

fn seconds_of(time: &Time) -> i64 {
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute);
    minutes * SECONDS_PER_MINUTE + i64::from(time.second.unwrap_or(0))
}

/// Of the Gregorian calendar. Years begin in March here, so that a leap day is the last of its year.
fn days_since_1970(date: &Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = i64::from(date.year) - i64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + day_of_year - EPOCH_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_time(text: &str) -> u64 {
        text.parse::<Expiry>().unwrap().unix_time().as_secs()
    }

    /// Against `date -ud`.
    #[test]
    fn a_day_counts_to_its_end_and_a_moment_to_itself() {
        for (text, seconds) in [
            ("1970-01-01", 86_400),
            ("2000-02-28", 951_782_400),
            ("2000-02-29", 951_868_800),
            ("2027-01-31", 1_801_440_000),
            ("2027-12-31", 1_830_297_600),
            ("2100-02-28", 4_107_542_400),
            ("2027-01-31T18:00:00Z", 1_801_418_400),
            ("2027-01-31T18:00:00", 1_801_418_400),
            ("2027-01-31 18:00:00.9", 1_801_418_400),
            ("2027-01-31T18:00:00+02:00", 1_801_411_200),
            ("2027-01-31T18:00:00-00:30", 1_801_420_200),
        ] {
            assert_eq!(unix_time(text), seconds, "{text}");
        }
        assert_eq!(
            "2027-01-31".parse::<Expiry>().unwrap().to_string(),
            "2027-01-31"
        );
    }

    #[test]
    fn what_names_no_day_is_refused_with_an_example() {
        for text in [
            "",
            "18:00:00",
            "2027-02-29",
            "1969-01-01",
            "tomorrow",
            "2027",
        ] {
            assert_eq!(text.parse::<Expiry>(), Err(InvalidExpiry), "{text}");
        }
        let value = DeValue::parse("'2027-01-31'").unwrap().into_inner();
        let message = expiry(&value).unwrap_err();
        assert!(message.ends_with("leave the quotes out"), "{message}");
        let value = DeValue::parse("7").unwrap().into_inner();
        assert_eq!(
            expiry(&value).unwrap_err(),
            format!("expected {EXPECTED}, found 7")
        );
    }
}
