//! The ledger in Redis 6 or newer: standalone, Sentinel or Cluster. Every call is one script on one record, one round trip.
//!
//! # Names
//! `postrider:{SS}:IDENTITY` is a record, a short text; `{SS}` is one of 256 hash tags taken from the identity, so that a record and the
//! epoch of its tag, `postrider:{SS}:epoch`, live in one slot of a cluster and one script may read both.
//!
//! # A store that was emptied
//! A message that was delivered before and has no record was either never claimed, or the store has forgotten the attempt. The
//! epoch tells: a time by Redis's clock, written when it is missing (on connecting, and by any claim that finds none).
//! What removes records removes the epoch of their slot with them - a restart without persistence, an emptied replica taking
//! over, FLUSHALL, one master of a cluster - so an epoch is never older than the loss, and an attempt that was forgotten
//! belongs to a message published before the epoch: `Unknown`. The claim script reads the epoch in the same step in which it finds no record,
//! so there is no cached value, no further round trip, and no moment between looking and claiming. An evicted or lost epoch
//! errs to the careful side. Not covered: a failover that loses the newest writes and nothing else (asynchronous replication); an attempt
//! forgotten that way is repeated only if its worker died as well.
//!
//! # Memory
//! A record that is at work, parked, held or cancelled lives 30 days, longer than the delay ladder keeps a copy; others for
//! the retention. What was sent shrinks to state, fence and payload hash. Redis needs `maxmemory-policy noeviction`.

mod acl;
pub use acl::rule as acl_rule;
mod address;
mod begun;
mod limits;
mod link;
mod notes;
mod postpone;
mod scripts;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::RedisResult;

use self::{
    address::Address,
    link::Link,
    scripts::{Scripts, final_of, keys, number, surprise},
};
use super::{
    BEAT_LIFE, CIRCUIT_LIFE, REFUSALS_LIFE, REFUSALS_MAX, StoreError, StoreOptions,
    circuit::{Circuit, CircuitAnswer, CircuitCall, PROBE, WAIT_MAX},
    clock::StoreClock,
    ledger::{
        Cancelled, Claim, ClaimRequest, Final, Lease, LeaseFacts, LedgerKey, LedgerStep, LedgerStepResult, Record,
        RecordState, Reopened,
    },
    millis,
    transitions::{CancelTransition, SKEW_MS},
};

/// The ledger in Redis.
#[derive(Clone)]
pub struct RedisStore {
    link: Link,
    options: StoreOptions,
    clock: Arc<StoreClock>,
}

/// Where the Redis at `url` is, for people.
pub fn shown(url: &str) -> Result<String, StoreError> {
    Address::parse(url).map(|address| format!("Redis at {}", address.shown()))
}

impl RedisStore {
    /// See [`super::Store::connect`].
    pub async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let link =
            Link::open(Address::parse(url)?.trusting(options.ca_file.as_deref())?, Scripts::new(), options.create)
                .await?;
        let store = Self { link, options, clock: Arc::default() };
        if store.is_up() {
            store.learn_time().await;
        }
        Ok(store)
    }

    /// Redis's clock, in ms, as far as this process knows it.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Asks Redis for its time. While it does not answer, what it said last is carried on.
    async fn learn_time(&self) {
        let asked = Instant::now();
        if let Ok((seconds, micros)) = self.link.query::<(u64, u64)>(&redis::cmd("TIME")).await {
            self.clock.heard(seconds.saturating_mul(1000).saturating_add(micros / 1000), asked);
        }
    }

    /// False while calls fail fast.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// See [`crate::Store::there`].
    pub async fn there(&self) -> Result<(), StoreError> {
        self.link.there().await
    }

    /// Resolves when Redis answers.
    pub async fn back(&self) {
        self.link.back().await;
    }

    /// See [`super::Store::claim`].
    pub async fn claim(&self, request: &ClaimRequest, holder: String) -> Result<Claim, StoreError> {
        let mut call = self.link.scripts().claim().prepare_invoke();
        let lease = self.ask_for(&mut call, request, holder);
        let answer: Vec<String> = self.link.invoke(&call).await?;
        read_claim(answer, lease).map_err(|error| unreadable(&error))
    }

    /// Keys and arguments of `claim.lua`, and the lease that a fence makes.
    fn ask_for(
        &self,
        call: &mut redis::ScriptInvocation<'_>,
        request: &ClaimRequest,
        holder: String,
    ) -> impl FnOnce(u64) -> Lease + use<> {
        let (record, epoch) = keys(request.key.as_str());
        let payload_hash = request.payload_hash.to_hex();
        call.key(record)
            .key(epoch)
            .arg(&payload_hash)
            .arg(request.generation)
            .arg(u8::from(request.redelivered))
            .arg(request.published_at.map(|time| time.as_millisecond().to_string()).unwrap_or_default())
            .arg(&holder)
            .arg(millis(self.options.lease))
            .arg(millis(self.options.working_life()))
            .arg(SKEW_MS);
        let (key, generation) = (request.key.clone(), request.generation);
        move |fence| Lease { key, facts: LeaseFacts { holder, fence, generation, payload_hash } }
    }

    /// See [`super::transitions::step`].
    pub async fn step(&self, lease: &Lease, step: LedgerStep<'_>) -> Result<LedgerStepResult, StoreError> {
        let end_note;
        let (word, note) = match step {
            LedgerStep::Submitting(call) => ("submitting", call),
            LedgerStep::Withdraw => ("withdraw", ""),
            LedgerStep::Renew => ("renew", ""),
            LedgerStep::Decide(text) => ("decide", text),
            LedgerStep::Parked(note) => ("parked", note),
            LedgerStep::Release => ("release", ""),
            LedgerStep::Finish(end, note) => {
                end_note = format!("{} {note}", end.as_str());
                ("finish", end_note.trim_end())
            }
        };
        let life = match step {
            LedgerStep::Finish(end, _) => self.options.life_of(end),
            _ => self.options.working_life(),
        };
        let facts = &lease.facts;
        let mut call = self.link.scripts().step().prepare_invoke();
        call.key(keys(lease.key.as_str()).0)
            .arg(word)
            .arg(&facts.holder)
            .arg(facts.fence)
            .arg(facts.generation)
            .arg(&facts.payload_hash)
            .arg(millis(self.options.lease))
            .arg(millis(life))
            .arg(note);
        let answer: String = self.link.invoke(&call).await?;
        match answer.as_str() {
            "ok" => Ok(LedgerStepResult::Done),
            "lost" => Ok(LedgerStepResult::Lost),
            "sent" => Ok(LedgerStepResult::SentBefore),
            _ => Err(unreadable(&surprise())),
        }
    }

    /// See [`super::transitions::cancel`].
    pub async fn cancel(&self, key: &LedgerKey) -> Result<CancelTransition, StoreError> {
        let mut call = self.link.scripts().cancel().prepare_invoke();
        call.key(keys(key.as_str()).0).arg(millis(self.options.working_life()));
        let answer: Vec<String> = self.link.invoke(&call).await?;
        read_cancel(answer).map_err(|error| unreadable(&error))
    }

    /// See [`super::transitions::alias`].
    pub async fn alias(&self, id: &LedgerKey, target: &LedgerKey) -> Result<Option<Final>, StoreError> {
        let mut call = self.link.scripts().alias().prepare_invoke();
        call.key(keys(id.as_str()).0).arg(target.as_str()).arg(millis(self.options.working_life()));
        let answer: String = self.link.invoke(&call).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        final_of(&answer).map(Some).map_err(|error| unreadable(&error))
    }

    /// See [`super::transitions::reopen`].
    pub async fn reopen(&self, key: &LedgerKey, generation: u32) -> Result<Reopened, StoreError> {
        let mut call = self.link.scripts().reopen().prepare_invoke();
        call.key(keys(key.as_str()).0).arg(generation).arg(millis(self.options.working_life()));
        let answer: String = self.link.invoke(&call).await?;
        match answer.as_str() {
            "go" => Ok(Reopened::Go),
            "sent" => Ok(Reopened::AlreadySent),
            "cancelled" => Ok(Reopened::Cancelled),
            "other" => Ok(Reopened::Other),
            _ => Err(unreadable(&surprise())),
        }
    }

    /// What is remembered of a job.
    pub async fn get(&self, key: &LedgerKey) -> Result<Option<Record>, StoreError> {
        let mut call = redis::cmd("GET");
        call.arg(keys(key.as_str()).0);
        let text: Option<String> = self.link.query(&call).await?;
        text.as_deref().map(read_record).transpose().map_err(|error| unreadable(&error))
    }

    /// See [`super::circuit::apply_call`].
    pub async fn circuit(&self, transport: &str, ask: &CircuitCall) -> Result<CircuitAnswer, StoreError> {
        let (word, reason, wait, probe) = match ask {
            CircuitCall::Open { reason, wait } => ("open", reason.as_str(), millis(*wait), 0),
            CircuitCall::Probe => ("probe", "", 0, 0),
            CircuitCall::Fail { probe, reason, wait } => ("fail", reason.as_str(), millis(*wait), *probe),
            CircuitCall::Release { probe } => ("release", "", 0, *probe),
            CircuitCall::Close => ("close", "", 0, 0),
        };
        let mut call = self.link.scripts().circuit().prepare_invoke();
        call.key(circuit_key(transport))
            .arg(word)
            .arg(reason)
            .arg(wait)
            .arg(millis(WAIT_MAX))
            .arg(millis(PROBE))
            .arg(millis(CIRCUIT_LIFE))
            .arg(probe);
        let answer: Vec<String> = self.link.invoke(&call).await?;
        read_told(&answer).map_err(|error| unreadable(&error))
    }

    /// The circuits of these transports. Their keys share a slot of a cluster.
    pub async fn circuits(&self, transports: &[String]) -> Result<Vec<Option<Circuit>>, StoreError> {
        let mut calls = redis::pipe();
        for transport in transports {
            calls.cmd("HMGET").arg(circuit_key(transport)).arg(&["o", "u", "n", "p", "r"]);
        }
        let answer: Vec<Vec<Option<String>>> = self.link.pipe(&calls).await?;
        let read = |fields: Vec<Option<String>>| match fields.into_iter().collect::<Option<Vec<String>>>() {
            None => Ok(None),
            Some(fields) => read_circuit(&fields).map(Some),
        };
        answer.into_iter().map(read).collect::<RedisResult<_>>().map_err(|error| unreadable(&error))
    }

    /// See [`super::Store::note_refusals`]: a set per transport.
    pub async fn note_refusals(&self, transport: &str, marks: &[String]) -> Result<Vec<String>, StoreError> {
        let key = refusals_key(transport);
        let mut calls = redis::pipe();
        calls.cmd("SADD").arg(&key).arg(marks).ignore();
        calls.cmd("PEXPIRE").arg(&key).arg(millis(REFUSALS_LIFE)).ignore();
        calls.cmd("SMEMBERS").arg(&key);
        let (all,): (Vec<String>,) = self.link.pipe(&calls).await?;
        if all.len() > REFUSALS_MAX {
            self.forget_refusals(transport).await?;
        }
        Ok(all)
    }

    /// See [`super::Store::forget_refusals`].
    pub async fn forget_refusals(&self, transport: &str) -> Result<(), StoreError> {
        let mut call = redis::cmd("DEL");
        call.arg(refusals_key(transport));
        let _: i64 = self.link.query(&call).await?;
        Ok(())
    }

    /// See [`super::Store::have_refusals`].
    pub async fn have_refusals(&self, transports: &[String]) -> Result<Vec<bool>, StoreError> {
        let mut calls = redis::pipe();
        for transport in transports {
            calls.cmd("EXISTS").arg(refusals_key(transport));
        }
        self.link.pipe(&calls).await
    }

    /// A key that ends by itself, and its name in a set from which the ended ones are taken.
    pub async fn beat(&self, worker: &str, text: &str) -> Result<(), StoreError> {
        self.learn_time().await;
        let now = i64::try_from(self.now_ms()).unwrap_or(i64::MAX);
        let life = millis(BEAT_LIFE);
        let mut calls = redis::pipe();
        calls.cmd("SET").arg(beat_key(worker)).arg(text).arg("PX").arg(life).ignore();
        calls.cmd("ZADD").arg(BEATS_KEY).arg(now).arg(worker).ignore();
        // The keys themselves say who lives.
        let old = now.saturating_sub_unsigned(10 * life);
        calls.cmd("ZREMRANGEBYSCORE").arg(BEATS_KEY).arg("-inf").arg(old).ignore();
        calls.cmd("PEXPIRE").arg(BEATS_KEY).arg(10 * life).ignore();
        self.link.pipe(&calls).await
    }

    /// Those whose keys have not ended.
    pub async fn beats(&self) -> Result<Vec<String>, StoreError> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(BEATS_KEY).arg(0).arg(-1);
        let workers: Vec<String> = self.link.query(&list).await?;
        if workers.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = redis::cmd("MGET");
        for worker in &workers {
            read.arg(beat_key(worker));
        }
        let texts: Vec<Option<String>> = self.link.query(&read).await?;
        Ok(texts.into_iter().flatten().collect())
    }

    /// See [`super::Store::unbeat`].
    pub async fn unbeat(&self, worker: &str) -> Result<(), StoreError> {
        let mut calls = redis::pipe();
        calls.cmd("DEL").arg(beat_key(worker)).ignore();
        calls.cmd("ZREM").arg(BEATS_KEY).arg(worker).ignore();
        self.link.pipe(&calls).await
    }

    /// Asks for a sign of life: the life of a key that does not exist, which a cluster can route where it cannot route `PING`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut call = redis::cmd("EXISTS");
        call.arg(keys("ping").1);
        self.link.query(&call).await
    }
}

fn unreadable(error: &redis::RedisError) -> StoreError {
    StoreError::Broken(format!("Redis gave {}; are workers of different versions at one store?", error.category()))
}

fn read_claim(answer: Vec<String>, lease: impl FnOnce(u64) -> Lease) -> RedisResult<Claim> {
    let second = answer.get(1);
    Ok(match answer.first().map(String::as_str) {
        Some("go") => Claim::Go(lease(number(second)?)),
        Some("unknown") => {
            Claim::Unknown { lease: lease(number(second)?), call: answer.get(2).cloned().unwrap_or_default() }
        }
        Some("decided") => {
            Claim::Decided { lease: lease(number(second)?), decision: answer.get(2).cloned().unwrap_or_default() }
        }
        Some("busy") => Claim::Busy { retry_in: Duration::from_millis(number(second)?) },
        Some("settled") => Claim::Settled(final_of(second.map_or("", String::as_str))?),
        Some("stale") => Claim::Stale,
        Some("conflict") => Claim::Conflict,
        _ => return Err(surprise()),
    })
}

/// Names of workers by the time of their last sign of life. In one slot of a cluster with the signs themselves.
const BEATS_KEY: &str = "postrider:{worker}:alive";

fn beat_key(worker: &str) -> String {
    format!("postrider:{{worker}}:{worker}")
}

fn circuit_key(transport: &str) -> String {
    format!("postrider:{{circuit}}:{transport}")
}

fn refusals_key(transport: &str) -> String {
    format!("postrider:{{circuit}}:refusals:{transport}")
}

fn read_told(answer: &[String]) -> RedisResult<CircuitAnswer> {
    let circuit = || read_circuit(answer.get(1..).unwrap_or_default());
    Ok(match answer.first().map(String::as_str) {
        Some("closed") => CircuitAnswer::Closed,
        Some("probe") => CircuitAnswer::Probe(number(answer.get(1))?),
        Some("open") => CircuitAnswer::Open(circuit()?),
        Some("opened") => CircuitAnswer::Opened(circuit()?),
        Some("healed") => CircuitAnswer::Healed(circuit()?),
        _ => return Err(surprise()),
    })
}

fn read_circuit(fields: &[String]) -> RedisResult<Circuit> {
    Ok(Circuit {
        opened_ms: number(fields.first())?,
        until_ms: number(fields.get(1))?,
        failures: number(fields.get(2))?,
        probe_ms: number(fields.get(3))?,
        reason: fields.get(4).cloned().unwrap_or_default(),
    })
}

fn read_cancel(answer: Vec<String>) -> RedisResult<CancelTransition> {
    let second = answer.get(1).map_or("", String::as_str);
    Ok(match answer.first().map(String::as_str) {
        Some("now") => CancelTransition::Answer(Cancelled::Now),
        Some("being-sent") => CancelTransition::Answer(Cancelled::BeingSent),
        Some("alias") => CancelTransition::Follow(second.to_owned()),
        Some("settled") => CancelTransition::Answer(match final_of(second)? {
            Final::Sent => Cancelled::AlreadySent,
            end => Cancelled::AlreadyFinal(end),
        }),
        _ => return Err(surprise()),
    })
}

/// The text that `prelude.lua` writes.
fn read_record(text: &str) -> RedisResult<Record> {
    let fields: Vec<&str> = text.splitn(7, '|').collect();
    let [state, generation, fence, holder, lease_end, payload_hash, note] = fields[..] else { return Err(surprise()) };
    // Behind the word of an end stands what its owner noted.
    let (word, end_note) = note.split_once(' ').unwrap_or((note, ""));
    let state = match state {
        "C" => RecordState::Claimed,
        "U" => RecordState::Submitting,
        "D" => RecordState::Decided,
        "P" => RecordState::Parked,
        "S" => RecordState::Final(Final::Sent),
        "H" => RecordState::Final(Final::Held),
        "F" => RecordState::Final(final_of(word)?),
        "A" => RecordState::Alias,
        _ => return Err(surprise()),
    };
    let note = match state {
        RecordState::Final(Final::Sent) => "",
        RecordState::Final(_) => end_note,
        _ => note,
    };
    Ok(Record {
        state,
        generation: or_zero(generation)?,
        fence: or_zero(fence)?,
        holder: holder.to_owned(),
        lease_end_ms: or_zero(lease_end)?,
        payload_hash: payload_hash.to_owned(),
        note: note.to_owned(),
    })
}

fn or_zero<T: std::str::FromStr + Default>(text: &str) -> RedisResult<T> {
    if text.is_empty() { Ok(T::default()) } else { text.parse().map_err(|_| surprise()) }
}
