//! How much of each limit is used, for a gauge: looked at now and then, and told under labels that a configuration bounds. Of tenants, senders'
//! domains and domains that are a group by themselves only the fullest one is told, and no name of theirs.

use std::collections::{HashMap, HashSet, VecDeque};

use opentelemetry::KeyValue;

use super::{label_values, metrics::Metrics};
use crate::policy::rate_limit::usage::{self, CountSample, LimitUse};

/// A use is told over this time, or over as much of it as there was.
const SPAN_US: f64 = 30e6;

/// Earlier looks, by scope.
#[derive(Default)]
pub(super) struct LimitUsage(HashMap<String, VecDeque<CountSample>>);

/// Labels and value of one gauge.
type GaugeValues = Vec<(Vec<KeyValue>, f64)>;

impl LimitUsage {
    /// Looks once more. Nothing is told while the store does not answer: nobody knows.
    pub fn look(&mut self, uses: Option<&[LimitUse]>, metrics: &Metrics) -> GaugeValues {
        let Some(uses) = uses else {
            self.0.clear();
            return GaugeValues::new();
        };
        self.told(uses, |scope| labels(metrics, scope))
    }

    fn told(&mut self, uses: &[LimitUse], labels: impl Fn(&str) -> Option<Vec<KeyValue>>) -> GaugeValues {
        let present: HashSet<&str> = uses.iter().map(|one| one.scope.as_str()).collect();
        self.0.retain(|scope, _| present.contains(scope.as_str()));
        let mut told = GaugeValues::new();
        for one in uses {
            let looks = self.0.entry(one.scope.clone()).or_default();
            looks.push_back(one.look);
            // The first one is what all is counted from: as old as the span, or a little older.
            while looks.get(1).is_some_and(|second| one.look.at - second.at >= SPAN_US) {
                looks.pop_front();
            }
            let share = looks.front().and_then(|first| usage::share(first, &one.look, one.per_second, one.is_paused));
            let (Some(share), Some(labels)) = (share, labels(&one.scope)) else { continue };
            match told.iter_mut().find(|(known, _)| *known == labels) {
                Some((_, fullest)) => *fullest = share.max(*fullest),
                None => told.push((labels, share)),
            }
        }
        told
    }
}

/// The labels of a scope; nothing for what is no scope of this version.
fn labels(metrics: &Metrics, scope: &str) -> Option<Vec<KeyValue>> {
    let (kind, rest) = scope.split_once(':')?;
    let (transport, group) = match kind {
        "transport" => (rest, ""),
        "group" => rest.split_once(':')?,
        "sender" => (rest.split_once(':')?.0, ""),
        "tenant" => ("", ""),
        _ => return None,
    };
    Some(vec![
        KeyValue::new("scope", label_values::bucket_scope(kind)),
        KeyValue::new("transport", metrics.transports.label(transport)),
        KeyValue::new("group", metrics.groups.label(group)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::scope::MinuteCounts;

    fn one(scope: &str, second: u32, count: f64) -> LimitUse {
        let used = MinuteCounts { minute: 1.0, count, before: 0.0 };
        let look = CountSample { at: 6e7 + f64::from(second) * 1e6, used };
        LimitUse { scope: scope.to_owned(), look, per_second: 2.0, is_paused: false }
    }

    fn kind(scope: &str) -> Option<Vec<KeyValue>> {
        Some(vec![KeyValue::new("scope", label_values::bucket_scope(scope.split_once(':')?.0))])
    }

    #[test]
    fn of_many_scopes_with_the_same_labels_the_fullest_is_told() {
        let mut buckets = LimitUsage::default();
        let at = |second: u32, counts: [f64; 3]| -> Vec<LimitUse> {
            let names = ["tenant:a", "tenant:b", "group:relay:slow"];
            names.into_iter().zip(counts).map(|(name, count)| one(name, second, count)).collect()
        };
        assert!(buckets.told(&at(0, [0.0; 3]), kind).is_empty(), "one look says nothing");
        let told = buckets.told(&at(5, [1.0, 5.0, 10.0]), kind);
        assert_eq!(told.iter().map(|(_, share)| *share).collect::<Vec<_>>(), [0.5, 1.0]);
        assert_eq!(told[0].0, kind("tenant:b").unwrap());
        assert_eq!(buckets.told(&at(10, [1.0, 5.0, 20.0])[2..], kind), [(kind("group:").unwrap(), 1.0)]);
        assert_eq!(buckets.0.len(), 1, "who is not looked at any more is forgotten");
    }

    #[test]
    fn what_passed_long_ago_is_not_counted() {
        let mut buckets = LimitUsage::default();
        for second in (0..=55).step_by(5) {
            // Two a second for 20 seconds, then none.
            let told = buckets.told(&[one("group:relay:slow", second, f64::from(second.min(20)) * 2.0)], kind);
            let share = told.first().map_or(0.0, |(_, share)| *share);
            match second {
                5..=20 => assert!((0.99..1.01).contains(&share), "{share}"),
                50.. => assert!(share < 0.01, "{share}"),
                _ => {}
            }
        }
        assert!(buckets.0["group:relay:slow"].len() <= 7);
    }
}
