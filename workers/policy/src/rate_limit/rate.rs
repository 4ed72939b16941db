//! Rates as people write them: `20/s`, `100/min`, `1_000_000/d`, `5/s burst 20`.

use std::{fmt, str::FromStr};

/// So much of a second may go at once where nobody says how much: it evens out the clocks and threads of workers.
const BURST_SECONDS: f64 = 0.02;

/// So many messages in a time, spread evenly over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Period,
    burst: Option<u32>,
    /// Spread evenly, whatever stands beside it.
    spread: bool,
}

/// The unit of a rate. One scope has one bucket for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// `/s`
    Second,
    /// `/min`
    Minute,
    /// `/h`
    Hour,
    /// `/d`
    Day,
}

impl Period {
    /// The unit as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
            Self::Day => "d",
        }
    }

    fn seconds(self) -> f64 {
        match self {
            Self::Second => 1.0,
            Self::Minute => 60.0,
            Self::Hour => 3600.0,
            Self::Day => 86_400.0,
        }
    }
}

/// A pace in messages a second as people write it: in the first unit in which it is at least one.
pub fn pace(per_second: f64) -> String {
    let units = [Period::Second, Period::Minute, Period::Hour, Period::Day];
    let is_one = |unit: &Period| per_second * unit.seconds() >= 0.995;
    let unit = units.into_iter().find(is_one).unwrap_or(Period::Day);
    let number = format!("{:.2}", per_second * unit.seconds());
    format!("{}/{}", number.trim_end_matches('0').trim_end_matches('.'), unit.as_str())
}

impl Rate {
    /// Its unit.
    pub fn period(&self) -> Period {
        self.per
    }

    /// Messages a second.
    pub fn per_second(&self) -> f64 {
        f64::from(self.count) / self.per.seconds()
    }

    /// Time between two messages, in microseconds.
    pub fn interval_us(&self) -> f64 {
        self.per.seconds() * 1e6 / f64::from(self.count)
    }

    /// Messages that may go at once after a pause; at least one.
    pub fn burst(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a fiftieth of a u32")]
        self.burst.unwrap_or_else(|| (self.per_second() * BURST_SECONDS).floor().max(1.0) as u32)
    }

    /// A quota of an hour or a day beside a rate for a shorter time: the shorter one holds until the quota is used up. One that is to be spread, or has
    /// a burst of its own, stays as it is.
    #[must_use]
    pub fn quota(self) -> Self {
        let is_quota = matches!(self.per, Period::Hour | Period::Day) && self.burst.is_none() && !self.spread;
        Self { burst: if is_quota { Some(self.count) } else { self.burst }, ..self }
    }

    /// How far a bucket may run ahead of the clock, in microseconds.
    pub fn tolerance_us(&self) -> f64 {
        f64::from(self.burst() - 1) * self.interval_us()
    }

    /// The same rate times `share`, for a worker that is alone with its part of it.
    #[must_use]
    pub fn interval_of_share_us(&self, share: f64) -> f64 {
        self.interval_us() / share
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per.as_str())?;
        if self.spread {
            write!(f, " spread")?;
        }
        self.burst.map_or(Ok(()), |burst| write!(f, " burst {burst}"))
    }
}

/// Says what a rate looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a rate such as 20/s, 100/min, 5000/h, 1_000_000/d, 5/s burst 20 or 10_000/d spread; the smallest number is 1, the largest {}",
    u32::MAX
)]
pub struct InvalidRate;

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let mut words = text.split_whitespace();
        let rate = words.next().ok_or(InvalidRate)?;
        let (burst, spread) = match (words.next(), words.next(), words.next()) {
            (None, None, None) => (None, false),
            (Some("spread"), None, None) => (None, true),
            (Some("burst"), Some(burst), None) => (Some(number(burst)?), false),
            _ => return Err(InvalidRate),
        };
        let (count, per) = rate.split_once('/').ok_or(InvalidRate)?;
        let per = match per {
            "s" | "sec" | "second" => Period::Second,
            "m" | "min" | "minute" => Period::Minute,
            "h" | "hour" => Period::Hour,
            "d" | "day" => Period::Day,
            _ => return Err(InvalidRate),
        };
        Ok(Self { count: number(count)?, per, burst, spread })
    }
}

/// A whole number from 1, with underscores between its digits.
fn number(text: &str) -> Result<u32, InvalidRate> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) || text.ends_with('_') {
        return Err(InvalidRate);
    }
    let number: u32 = text.replace('_', "").parse().map_err(|_| InvalidRate)?;
    if number == 0 { Err(InvalidRate) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, interval_us: f64, burst: u32, shown: &str) {
        let rate: Rate = text.parse().unwrap();
        assert!((rate.interval_us() - interval_us).abs() < 1e-9, "{}", rate.interval_us());
        assert_eq!((rate.burst(), rate.to_string().as_str()), (burst, shown));
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        check("20/s", 50_000.0, 1, "20/s");
        check("200/s", 5_000.0, 4, "200/s");
        check("100/min", 600_000.0, 1, "100/min");
        check("5000/hour", 720_000.0, 1, "5000/h");
        check("1_000_000/d", 86_400.0, 1, "1000000/d");
        check("5/s burst 20", 200_000.0, 20, "5/s burst 20");
        check(" 3/day  burst 2 ", 28_800_000_000.0, 2, "3/d burst 2");
    }

    #[test]
    fn a_pace_is_shown_in_a_unit_that_makes_it_a_number() {
        let shown =
            [50.0, 12.345, 0.999, 0.5, 1.0 / 60.0, 10.0 / 3600.0, 1.0 / 86_400.0, 0.25 / 86_400.0, 1000.0].map(pace);
        assert_eq!(shown, ["50/s", "12.35/s", "1/s", "30/min", "1/min", "10/h", "1/d", "0.25/d", "1000/s"]);
    }

    #[test]
    fn a_quota_may_be_used_up_at_the_pace_beside_it() {
        let quota = |text: &str| text.parse::<Rate>().unwrap().quota();
        assert_eq!(
            (quota("10_000/d").burst(), quota("10_000/d").to_string()),
            (10_000, "10000/d burst 10000".to_owned())
        );
        assert_eq!(
            (quota("10_000/d spread").burst(), quota("100/h burst 5").burst(), quota("100/min").burst()),
            (1, 5, 1)
        );
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "20",
            "20/",
            "/s",
            "0/s",
            "-1/s",
            "1.5/s",
            "20/w",
            "20/s 5",
            "20/s spread 5",
            "20/s burst",
            "20/s burst 0",
            "_1/s",
            "1_/s",
            "5000000000/s",
            "20/s burst 5 x",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(InvalidRate), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["1/s", "7/min burst 3", "9/d spread", "1_000/h", "4294967295/d"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
        }
    }
}
