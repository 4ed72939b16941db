//! Reads what `look.lua` found: hashes and sorted sets back into scopes.

use postrider_policy::rate_limit::scope::{
    Bucket, MinuteCounts, RateOverride, RateReduction, RuleCalls, Scope, TenantPosition, WaitQueue,
};
use postrider_schemas::Lane;
use redis::RedisResult;

use crate::redis::scripts::surprise;

/// Fields of a hash, then the sorted sets with their scores.
pub(super) type LookReply = (Vec<(String, String)>, [Vec<(String, f64)>; 4]);

pub(super) fn read_look(answer: Vec<redis::Value>) -> RedisResult<(String, Vec<LookReply>)> {
    let mut values = answer.into_iter();
    let now = redis::from_redis_value(values.next().ok_or_else(surprise)?)?;
    let looks = values.map(|value| {
        let parts: Vec<Vec<String>> = redis::from_redis_value(value)?;
        let [fields, sets @ ..] = parts.as_slice() else { return Err(surprise()) };
        let set = |place: usize| -> RedisResult<Vec<(String, f64)>> {
            let pairs = sets.get(place).ok_or_else(surprise)?.chunks_exact(2);
            pairs.map(|pair| Ok((pair[0].clone(), pair[1].parse().map_err(|_| surprise())?))).collect()
        };
        let fields = fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        Ok((fields, [set(0)?, set(1)?, set(2)?, set(3)?]))
    });
    Ok((now, looks.collect::<RedisResult<_>>()?))
}

/// Nothing where the store has forgotten it.
pub(super) fn scope_of((fields, sets): LookReply) -> Option<Scope> {
    if fields.is_empty() && sets.iter().all(Vec::is_empty) {
        return None;
    }
    let fields: std::collections::BTreeMap<String, String> = fields.into_iter().collect();
    let number = |name: &str| fields.get(name).and_then(|text| text.parse::<f64>().ok());
    let mut scope = Scope {
        paused_until: number("p").unwrap_or_default(),
        why: fields.get("w").cloned().unwrap_or_default(),
        cut: number("cl").map(|left| RateReduction {
            left,
            at: number("ca").unwrap_or_default(),
            recovery: number("cr").unwrap_or_default(),
            seen_interval_us: number("cs").unwrap_or_default(),
        }),
        set_why: fields.get("ws").cloned().unwrap_or_default(),
        set: number("su").map(|until| RateOverride {
            bucket: fields.get("sb").cloned().unwrap_or_default(),
            interval_us: number("si").unwrap_or_default(),
            tolerance_us: number("so").unwrap_or_default(),
            until,
        }),
        used: MinuteCounts {
            minute: number("um").unwrap_or_default(),
            count: number("uc").unwrap_or_default(),
            before: number("ub").unwrap_or_default(),
        },
        ..Scope::default()
    };
    for name in fields.keys() {
        if let Some(bucket) = name.strip_prefix("t:") {
            let of = |letter: &str| number(&format!("{letter}:{bucket}")).unwrap_or_default();
            let state = Bucket { all: of("t"), urgent: of("x"), interval_us: of("i"), tolerance_us: of("o") };
            scope.buckets.insert(bucket.to_owned(), state);
        }
        if let Some(reaction) = name.strip_prefix("n:") {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of calls")]
            let count = number(name).unwrap_or_default() as u32;
            let since = number(&format!("s:{reaction}")).unwrap_or_default();
            scope.calls.insert(reaction.to_owned(), RuleCalls { count, since, until: 0.0 });
        }
    }
    let weight = |tenant: &str| number(&format!("g:{tenant}")).unwrap_or(1.0);
    let [ends_t, shares_t, ends_b, shares_b] = sets;
    for (lane, ends, shares) in [(Lane::Transactional, ends_t, shares_t), (Lane::Bulk, ends_b, shares_b)] {
        if ends.is_empty() && shares.is_empty() {
            continue;
        }
        let places = ends.into_iter().map(|(tenant, end)| {
            let weight = weight(&tenant);
            (tenant, TenantPosition { end, weight })
        });
        let line = WaitQueue { ends: places.collect(), shares: shares.into_iter().collect() };
        scope.lines.insert(lane.as_str().to_owned(), line);
    }
    Some(scope)
}
