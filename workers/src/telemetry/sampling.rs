//! Which traces are sent. Pure: environment and dice are arguments.
//!
//! Every attempt is recorded in memory while traces are on, which costs little, and decided about when it ends: by its parent or by ratio, as
//! `OTEL_TRACES_SAMPLER` says, or because it failed in a way that somebody will ask about. Failures alone do not flood a collector:
//! a worker sends at most [`FAILURES_A_SECOND`] traces for that reason.

use opentelemetry::trace::{SpanContext, TraceId};

/// Most traces a second that are sent because of a failure alone.
pub const FAILURES_A_SECOND: u32 = 10;

/// What `OTEL_TRACES_SAMPLER` and its argument say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The decision of a parent counts.
    by_parent: bool,
    /// The share of traces without a parent.
    ratio: f64,
}

impl Sampler {
    /// Reads the two variables. Nothing where no trace is wanted, failures included: `always_off`. What is unknown counts as the default,
    /// which is `parentbased_always_on`.
    pub fn of(name: Option<&str>, argument: Option<&str>) -> Option<Self> {
        let ratio = || argument.and_then(|text| text.trim().parse().ok()).filter(|ratio| (0.0..=1.0).contains(ratio));
        let (by_parent, ratio) = match name.unwrap_or_default() {
            "always_off" => return None,
            "always_on" => (false, 1.0),
            "traceidratio" => (false, ratio().unwrap_or(1.0)),
            "parentbased_traceidratio" => (true, ratio().unwrap_or(1.0)),
            "parentbased_always_off" => (true, 0.0),
            _ => (true, 1.0),
        };
        Some(Self { by_parent, ratio })
    }

    /// Decides about a trace.
    pub fn wants(self, parent: Option<&SpanContext>, trace: TraceId) -> bool {
        match parent {
            Some(parent) if self.by_parent => parent.is_sampled(),
            _ => self.is_drawn(trace),
        }
    }

    /// The same answer in every process that sees the trace: its id is the dice.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no 64 bits")]
    fn is_drawn(self, trace: TraceId) -> bool {
        let low = u128::from_be_bytes(trace.to_bytes()) & u128::from(u64::MAX);
        let drawn = u64::try_from(low).unwrap_or(u64::MAX) >> 11;
        (drawn as f64) < self.ratio * (1_u64 << 53) as f64
    }
}

/// Lets so many through in each second.
#[derive(Debug, Default)]
pub struct Few {
    second: i64,
    count: u32,
}

impl Few {
    /// True for the first few of a second.
    pub fn admits(&mut self, second: i64) -> bool {
        if self.second != second {
            *self = Self { second, count: 0 };
        }
        self.count += 1;
        self.count <= FAILURES_A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace_parent::parse;

    #[track_caller]
    fn check(
        name: &str,
        argument: &str,
        sampled_parent: bool,
        unsampled_parent: bool,
        share: std::ops::RangeInclusive<u32>,
    ) {
        let sampler = Sampler::of(Some(name), Some(argument)).unwrap();
        let parent = |flags: &str| parse(&format!("00-{:032x}-b7ad6b7169203331-{flags}", u128::MAX), "").unwrap();
        let (yes, no) = (parent("01"), parent("00"));
        assert_eq!(sampler.wants(Some(&yes), yes.trace_id()), sampled_parent);
        assert_eq!(sampler.wants(Some(&no), no.trace_id()), unsampled_parent);
        let trace = |n: u64| TraceId::from(u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let drawn = u32::try_from((1..=1000).filter(|n| sampler.wants(None, trace(*n))).count()).unwrap();
        assert!(share.contains(&drawn), "{name}: {drawn} of 1000");
    }

    #[test]
    fn the_standard_variables_are_understood() {
        check("always_on", "", true, true, 1000..=1000);
        check("parentbased_always_on", "", true, false, 1000..=1000);
        check("parentbased_always_off", "", true, false, 0..=0);
        check("parentbased_traceidratio", "0.1", true, false, 60..=140);
        check("traceidratio", "0", false, false, 0..=0);
        check("traceidratio", "ten", true, true, 1000..=1000);
        check("something else", "", true, false, 1000..=1000);
        assert_eq!(Sampler::of(Some("always_off"), None), None);
    }

    #[test]
    fn a_flood_of_failures_is_let_through_in_part() {
        let mut few = Few::default();
        let admitted = |few: &mut Few, second| (0..100).filter(|_| few.admits(second)).count();
        assert_eq!((admitted(&mut few, 7), admitted(&mut few, 8)), (10, 10));
    }
}
