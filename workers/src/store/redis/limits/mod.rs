//! The limiter in Redis: one script a call, all of its keys in one slot.
//!
//! # Names
//! `postrider:{limits}:SCOPE` is a scope, a hash; `...:ends:LANE:SCOPE` and `...:shares:LANE:SCOPE` are sorted sets, one member per tenant that
//! waits; `postrider:{limits}` is the index of scopes. One hash tag for all of them, because a message is counted against a
//! transport, a group and a tenant in one step: in a cluster the limiter lives on one node.

use std::{sync::LazyLock, time::Duration};

use postrider_schemas::Lane;
use redis::{RedisResult, Script, ScriptInvocation};

use super::{RedisStore, scripts::surprise, unreadable};
use crate::{
    decide::limits::{
        admit::{Admission, Ask},
        connections::Want,
        reaction::{Call, Order, Reacted},
        scope::{Bucket, Calls, Cut, Line, Place, Scope, Set, Used},
    },
    store::{StoreError, limiter::Overview, millis},
};

const INDEX: &str = "postrider:{limits}";
const DISTURBED: &str = "postrider:{limits}:disturbed";
const WORKERS: &str = "postrider:{limits}:workers";
/// Scopes that one look reads: some milliseconds of the server at most.
const LOOK_MAX: usize = 100;

struct Scripts {
    admit: Script,
    react: Script,
    order: Script,
    look: Script,
    presence: Script,
    connections: Script,
    disturbed: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("prelude.lua"), include_str!($file)))
    };
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    admit: script!("admit.lua"),
    react: script!("react.lua"),
    order: script!("order.lua"),
    look: script!("look.lua"),
    presence: Script::new(include_str!("presence.lua")),
    connections: script!("connections.lua"),
    disturbed: script!("disturbed.lua"),
});

impl RedisStore {
    /// See [`crate::store::Store::admit`].
    pub async fn admit(&self, ask: &Ask, now: Option<u64>) -> Result<Admission, StoreError> {
        let mut call = SCRIPTS.admit.prepare_invoke();
        call.key(INDEX);
        for demand in &ask.demands {
            call.key(scope_key(&demand.scope));
            call.key(line_key("ends", ask.lane, &demand.scope));
            call.key(line_key("shares", ask.lane, &demand.scope));
        }
        call.arg(clock(now))
            .arg(letter(ask.lane))
            .arg(&ask.tenant)
            .arg(ask.weight)
            .arg(u8::from(ask.fresh))
            .arg(ask.want)
            .arg(u8::from(ask.queue));
        for demand in &ask.demands {
            call.arg(&demand.scope).arg(demand.limits.len());
            for limit in &demand.limits {
                call.arg(limit.bucket).arg(limit.interval_us).arg(limit.tolerance_us);
            }
        }
        read_admission(&self.invoke::<Vec<String>>(&call).await?).ok_or_else(|| unreadable(&surprise()))
    }

    /// See [`crate::store::Store::react`].
    pub async fn react(&self, scope: &str, call: &Call, now: Option<u64>) -> Result<Reacted, StoreError> {
        let mut invocation = SCRIPTS.react.prepare_invoke();
        invocation
            .key(INDEX)
            .key(scope_key(scope))
            .key(DISTURBED)
            .arg(clock(now))
            .arg(scope)
            .arg(&call.reaction)
            .arg(call.count)
            .arg(call.within_us)
            .arg(call.pause_us)
            .arg(call.keep)
            .arg(call.floor)
            .arg(call.recovery)
            .arg(call.incident_us)
            .arg(call.seen_interval_us)
            .arg(&call.why);
        let answer: Vec<String> = self.invoke(&invocation).await?;
        let [fired, is_cut, left, pause_us] = answer.as_slice() else { return Err(unreadable(&surprise())) };
        let number = |text: &str| text.parse::<f64>().map_err(|_| unreadable(&surprise()));
        Ok(Reacted { fired: fired == "1", is_cut: is_cut == "1", left: number(left)?, pause_us: number(pause_us)? })
    }

    /// See [`crate::store::Store::order`].
    pub async fn order(&self, scope: &str, order: &Order, now: Option<u64>) -> Result<(), StoreError> {
        let mut call = SCRIPTS.order.prepare_invoke();
        call.key(INDEX).key(scope_key(scope)).key(DISTURBED).arg(clock(now)).arg(scope);
        match order {
            Order::Pause { for_us, why } => call.arg("pause").arg(for_us).arg(why),
            Order::Resume => call.arg("resume"),
            Order::Set { interval_us, tolerance_us, for_us, why } => {
                call.arg("set").arg(for_us).arg(why).arg(interval_us).arg(tolerance_us)
            }
        };
        self.invoke::<String>(&call).await.map(drop)
    }

    /// See [`crate::store::Store::overview`]. Scopes that are forgotten leave the index on the way.
    pub async fn overview(&self, only: Option<&[String]>, now: Option<u64>) -> Result<Overview, StoreError> {
        let mut names = if let Some(names) = only {
            names.to_vec()
        } else {
            let mut call = redis::cmd("ZRANGE");
            call.arg(INDEX).arg(0).arg(-1);
            self.query::<Vec<String>>(&call).await?
        };
        names.sort_unstable();
        names.dedup();
        let mut overview = Overview::default();
        for names in names.chunks(LOOK_MAX) {
            let mut call = SCRIPTS.look.prepare_invoke();
            for name in names {
                call.key(scope_key(name));
                for lane in Lane::ALL {
                    call.key(line_key("ends", lane, name)).key(line_key("shares", lane, name));
                }
            }
            call.arg(clock(now));
            let (now, scopes): (String, Vec<Look>) =
                read_look(self.invoke(&call).await?).map_err(|e| unreadable(&e))?;
            overview.now = now.parse().map_err(|_| unreadable(&surprise()))?;
            for (name, look) in names.iter().zip(scopes) {
                match scope_of(look) {
                    Some(scope) => overview.scopes.push((name.clone(), scope)),
                    None if only.is_none() => {
                        let mut call = redis::cmd("ZREM");
                        call.arg(INDEX).arg(name);
                        self.query::<i64>(&call).await?;
                    }
                    None => {}
                }
            }
        }
        Ok(overview)
    }

    /// See [`crate::store::Store::disturbed`].
    pub async fn disturbed(&self, now: Option<u64>) -> Result<Vec<String>, StoreError> {
        let mut call = SCRIPTS.disturbed.prepare_invoke();
        call.key(DISTURBED).arg(clock(now));
        self.invoke(&call).await
    }

    /// See [`crate::store::Store::presence`].
    pub async fn presence(&self, worker: &str, life: Duration) -> Result<u32, StoreError> {
        let mut call = SCRIPTS.presence.prepare_invoke();
        call.key(WORKERS).arg(worker).arg(millis(life));
        self.invoke(&call).await
    }

    /// See [`crate::store::Store::connections`].
    pub async fn connections(&self, transport: &str, want: &Want, now: Option<u64>) -> Result<u32, StoreError> {
        let mut call = SCRIPTS.connections.prepare_invoke();
        call.key(format!("{INDEX}:connections:{transport}"))
            .arg(clock(now))
            .arg(&want.worker)
            .arg(want.wanted)
            .arg(want.using)
            .arg(want.total)
            .arg(want.life_us);
        self.invoke(&call).await
    }

    async fn invoke<T: redis::FromRedisValue + Send>(&self, call: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        self.link.run(|mut conn| Box::pin(async move { call.invoke_async(&mut conn).await })).await
    }

    async fn query<T: redis::FromRedisValue + Send>(&self, call: &redis::Cmd) -> Result<T, StoreError> {
        self.link.run(|mut conn| Box::pin(async move { call.query_async(&mut conn).await })).await
    }
}

fn scope_key(scope: &str) -> String {
    format!("{INDEX}:{scope}")
}

fn line_key(what: &str, lane: Lane, scope: &str) -> String {
    format!("{INDEX}:{what}:{}:{scope}", letter(lane))
}

fn letter(lane: Lane) -> &'static str {
    match lane {
        Lane::Transactional => "t",
        Lane::Bulk => "b",
    }
}

fn clock(now: Option<u64>) -> String {
    now.map(|now| now.to_string()).unwrap_or_default()
}

fn read_admission(answer: &[String]) -> Option<Admission> {
    let number = |place: usize| answer.get(place)?.parse::<f64>().ok();
    let whole = |place: usize| answer.get(place)?.parse::<usize>().ok();
    Some(match answer.first()?.as_str() {
        "free" => Admission::Free,
        "go" => Admission::Go { wait_us: number(1)?, tokens: u32::try_from(whole(2)?).ok()?, step_us: number(3)? },
        "park" => Admission::Park { park_us: number(1)?, slot_us: number(2)?, scope: whole(3)? },
        "full" => Admission::Full { wait_us: number(1)?, scope: whole(2)? },
        _ => return None,
    })
}

/// Fields of a hash, then the sorted sets with their scores.
type Look = (Vec<(String, String)>, [Vec<(String, f64)>; 4]);

fn read_look(answer: Vec<redis::Value>) -> RedisResult<(String, Vec<Look>)> {
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
fn scope_of((fields, sets): Look) -> Option<Scope> {
    if fields.is_empty() && sets.iter().all(Vec::is_empty) {
        return None;
    }
    let fields: std::collections::BTreeMap<String, String> = fields.into_iter().collect();
    let number = |name: &str| fields.get(name).and_then(|text| text.parse::<f64>().ok());
    let mut scope = Scope {
        paused_until: number("p").unwrap_or_default(),
        why: fields.get("w").cloned().unwrap_or_default(),
        cut: number("cl").map(|left| Cut {
            left,
            at: number("ca").unwrap_or_default(),
            recovery: number("cr").unwrap_or_default(),
            seen_interval_us: number("cs").unwrap_or_default(),
        }),
        set: number("su").map(|until| Set {
            interval_us: number("si").unwrap_or_default(),
            tolerance_us: number("so").unwrap_or_default(),
            until,
        }),
        used: Used {
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
            scope.calls.insert(reaction.to_owned(), Calls { count, since });
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
            (tenant, Place { end, weight })
        });
        let line = Line { ends: places.collect(), shares: shares.into_iter().collect() };
        scope.lines.insert(lane.as_str().to_owned(), line);
    }
    Some(scope)
}
