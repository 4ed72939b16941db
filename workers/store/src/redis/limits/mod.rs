//! The limiter in Redis: one script a call, all of its keys in one slot.
//!
//! # Names
//! `postrider:{limits}:SCOPE` is a scope, a hash; `...:ends:LANE:SCOPE` and `...:shares:LANE:SCOPE` are sorted sets, one member per tenant that
//! waits; `postrider:{limits}` is the index of scopes. One hash tag for all of them, because a message is counted against a
//! transport, a group and a tenant in one step: in a cluster the limiter lives on one node.

mod look;

use std::{sync::LazyLock, time::Duration};

use postrider_policy::rate_limit::{
    admit::{Admission, AdmissionRequest},
    connections::LeaseRequest,
    scope::Scope,
    shaping_rule::{LimitCommand, RuleCall, ShapingEffect},
};
use postrider_schemas::Lane;
use redis::{Script, ScriptInvocation};

use self::look::{LookReply, read_look, scope_of};
use super::{RedisStore, read_claim, scripts::surprise, unreadable};
use crate::{Claim, ClaimRequest, StoreError, limiter::Overview, millis};

const INDEX: &str = "postrider:{limits}";
const DISTURBED: &str = "postrider:{limits}:disturbed";
const WORKERS: &str = "postrider:{limits}:workers";
/// Scopes that one look reads: some milliseconds of the server at most.
const LOOK_MAX: usize = 100;

struct LimitScripts {
    admit: Script,
    claim_and_admit: Script,
    react: Script,
    order: Script,
    look: Script,
    presence: Script,
    connections: Script,
    overrides: Script,
    forget: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("prelude.lua"), include_str!($file)))
    };
}

static SCRIPTS: LazyLock<LimitScripts> = LazyLock::new(|| LimitScripts {
    admit: script!("admit.lua"),
    // The one, and where it grants the job the other, each with its own keys and arguments.
    claim_and_admit: Script::new(concat!(
        "local claimed\ndo\n",
        include_str!("../prelude.lua"),
        "local function claim()\n",
        include_str!("../claim.lua"),
        "\nend\nclaimed = claim()\nend\nif claimed[1] ~= 'go' then return claimed end\n",
        "local KEYS, ARGV = { unpack(KEYS, 3) }, { unpack(ARGV, 9) }\nlocal function ask()\n",
        include_str!("prelude.lua"),
        include_str!("admit.lua"),
        "\nend\nfor _, word in ipairs(ask()) do claimed[#claimed + 1] = word end\nreturn claimed\n",
    )),
    react: script!("react.lua"),
    order: script!("order.lua"),
    look: script!("look.lua"),
    presence: Script::new(include_str!("presence.lua")),
    connections: script!("connections.lua"),
    overrides: script!("overrides.lua"),
    forget: Script::new(include_str!("forget.lua")),
});

impl RedisStore {
    /// Whether a claim and a question about limits can be one call.
    pub fn asks_in_one_call(&self) -> bool {
        !self.link.is_cluster()
    }

    /// See [`crate::Store::claim_and_admit`].
    pub async fn claim_and_admit(
        &self,
        request: &ClaimRequest,
        holder: String,
        ask: &AdmissionRequest,
        now: Option<u64>,
    ) -> Result<(Claim, Option<Admission>), StoreError> {
        let mut call = SCRIPTS.claim_and_admit.prepare_invoke();
        let lease = self.ask_for(&mut call, request, holder);
        put(&mut call, ask, now);
        let mut answer: Vec<String> = self.link.invoke(&call).await?;
        // What follows the fence of a claim that was granted is the admission.
        let granted = answer.first().is_some_and(|word| word == "go");
        let admission = if granted { answer.split_off(answer.len().min(2)) } else { Vec::new() };
        let claim = read_claim(answer, lease).map_err(|error| unreadable(&error))?;
        Ok((claim, read_admission(&admission)))
    }

    /// See [`crate::Store::admit`].
    pub async fn admit(&self, ask: &AdmissionRequest, now: Option<u64>) -> Result<Admission, StoreError> {
        let mut call = SCRIPTS.admit.prepare_invoke();
        put(&mut call, ask, now);
        read_admission(&self.link.invoke::<Vec<String>>(&call).await?).ok_or_else(|| unreadable(&surprise()))
    }

    /// See [`crate::Store::react`].
    pub async fn react(&self, scope: &str, call: &RuleCall, now: Option<u64>) -> Result<ShapingEffect, StoreError> {
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
        let answer: Vec<String> = self.link.invoke(&invocation).await?;
        let [fired, is_cut, left, pause_us] = answer.as_slice() else { return Err(unreadable(&surprise())) };
        let number = |text: &str| text.parse::<f64>().map_err(|_| unreadable(&surprise()));
        Ok(ShapingEffect {
            fired: fired == "1",
            is_cut: is_cut == "1",
            left: number(left)?,
            pause_us: number(pause_us)?,
        })
    }

    /// See [`crate::Store::order`].
    pub async fn order(&self, scope: &str, order: &LimitCommand, now: Option<u64>) -> Result<(), StoreError> {
        let mut call = SCRIPTS.order.prepare_invoke();
        call.key(INDEX).key(scope_key(scope)).key(DISTURBED).arg(clock(now)).arg(scope);
        match order {
            LimitCommand::Pause { for_us, why } => call.arg("pause").arg(for_us).arg(why),
            LimitCommand::Resume => call.arg("resume"),
            LimitCommand::Set { bucket, interval_us, tolerance_us, for_us, why } => {
                call.arg("set").arg(for_us).arg(why).arg(interval_us).arg(tolerance_us).arg(bucket)
            }
        };
        self.link.invoke::<String>(&call).await.map(drop)
    }

    /// See [`crate::Store::overview`]. Scopes that are forgotten leave the index on the way.
    pub async fn overview(&self, only: Option<&[String]>, now: Option<u64>) -> Result<Overview, StoreError> {
        let mut names = if let Some(names) = only {
            names.to_vec()
        } else {
            let mut call = redis::cmd("ZRANGE");
            call.arg(INDEX).arg(0).arg(-1);
            self.link.query::<Vec<String>>(&call).await?
        };
        names.sort_unstable();
        names.dedup();
        let mut overview = Overview::default();
        for names in names.chunks(LOOK_MAX) {
            let (now, scopes) = self.look(names, "lines", now).await?;
            overview.now = now;
            let mut gone = Vec::new();
            for (name, scope) in names.iter().zip(scopes) {
                match scope {
                    Some(scope) => overview.scopes.push((name.clone(), scope)),
                    None => gone.push(name.clone()),
                }
            }
            if only.is_none() {
                self.forget(&gone).await?;
            }
        }
        Ok(overview)
    }

    /// Takes those of these scopes out of the index that are not there, in one step with looking: one that came meanwhile is listed once, when it
    /// begins, and has to stay.
    pub async fn forget(&self, names: &[String]) -> Result<(), StoreError> {
        for names in names.chunks(LOOK_MAX) {
            let mut call = SCRIPTS.forget.prepare_invoke();
            call.key(INDEX);
            for name in names {
                call.key(scope_key(name)).arg(name);
                for lane in Lane::ALL {
                    call.key(line_key("ends", lane, name));
                }
            }
            self.link.invoke::<i64>(&call).await?;
        }
        Ok(())
    }

    /// See [`crate::Store::counts`].
    pub async fn counts(&self, names: &[String], now: Option<u64>) -> Result<Overview, StoreError> {
        let mut overview = Overview::default();
        for names in names.chunks(LOOK_MAX) {
            let (now, scopes) = self.look(names, "", now).await?;
            overview.now = now;
            let known = names.iter().zip(scopes).filter_map(|(name, scope)| Some((name.clone(), scope?)));
            overview.scopes.extend(known);
        }
        Ok(overview)
    }

    /// One call: the store's clock, and of each scope what it knows.
    async fn look(
        &self,
        names: &[String],
        what: &str,
        now: Option<u64>,
    ) -> Result<(f64, Vec<Option<Scope>>), StoreError> {
        let mut call = SCRIPTS.look.prepare_invoke();
        for name in names {
            call.key(scope_key(name));
            for lane in Lane::ALL {
                call.key(line_key("ends", lane, name)).key(line_key("shares", lane, name));
            }
        }
        call.arg(clock(now)).arg(what);
        let (now, looks): (String, Vec<LookReply>) =
            read_look(self.link.invoke(&call).await?).map_err(|error| unreadable(&error))?;
        let now = now.parse().map_err(|_| unreadable(&surprise()))?;
        Ok((now, looks.into_iter().map(scope_of).collect()))
    }

    /// See [`crate::Store::overrides`].
    pub async fn overrides(&self, now: Option<u64>) -> Result<Vec<String>, StoreError> {
        let mut call = SCRIPTS.overrides.prepare_invoke();
        call.key(DISTURBED).arg(clock(now));
        self.link.invoke(&call).await
    }

    /// See [`crate::Store::presence`].
    pub async fn presence(&self, worker: &str, life: Duration) -> Result<u32, StoreError> {
        let mut call = SCRIPTS.presence.prepare_invoke();
        call.key(WORKERS).arg(worker).arg(millis(life));
        self.link.invoke(&call).await
    }

    /// See [`crate::Store::connections`].
    pub async fn connections(&self, transport: &str, want: &LeaseRequest, now: Option<u64>) -> Result<u32, StoreError> {
        let mut call = SCRIPTS.connections.prepare_invoke();
        call.key(format!("{INDEX}:connections:{transport}"))
            .arg(clock(now))
            .arg(&want.worker)
            .arg(want.wanted)
            .arg(want.spare)
            .arg(want.using)
            .arg(want.total)
            .arg(want.life_us);
        self.link.invoke(&call).await
    }
}

/// Keys and arguments of `admit.lua`.
fn put(call: &mut ScriptInvocation<'_>, ask: &AdmissionRequest, now: Option<u64>) {
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
        .arg(u8::from(ask.queue))
        .arg(u8::from(ask.hold));
    for demand in &ask.demands {
        call.arg(&demand.scope).arg(demand.limits.len());
        for limit in &demand.limits {
            call.arg(limit.bucket).arg(limit.interval_us).arg(limit.tolerance_us);
        }
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
