//! What each call does to a record, as pure functions over (record, question, now). The embedded store runs these; the Lua
//! scripts of the Redis store say the same, and one contract suite holds the two together.
//!
//! Rules that decide everything else:
//! - a message of an older generation is stale, one of a newer generation proves that the older one ended;
//! - what may have been sent is never attempted again without saying so: an owner that died in `U` leaves `Unknown`, again and
//!   again if need be, and never an end, because that would lose mail;
//! - a yes of a transport is the truth and wins over every other state; all other steps are fenced;
//! - the same call twice does what one does.

use super::ledger::{
    Cancelled, Final, LeaseFacts, LedgerStep, LedgerStepResult, Postponed, Record, RecordState, Reopened,
};

/// How far the clock of a publisher may be ahead of the store's before a message published just after the store was emptied
/// is taken for unattempted, in ms.
pub const SKEW_MS: u64 = 1000;

/// The longest lease, in ms. One that would last for longer was given out before the store's clock was set back, and is cut where it is found.
pub const LEASE_MAX_MS: u64 = 600_000;

/// A claim, as a transition sees it.
#[derive(Debug, Clone)]
pub struct ClaimInput<'a> {
    /// 32 hexadecimal digits.
    pub payload_hash: &'a str,
    /// The message's generation.
    pub generation: u32,
    /// The queue delivered it before.
    pub redelivered: bool,
    /// When it was published, in ms.
    pub published_ms: Option<u64>,
    /// Names this call.
    pub holder: &'a str,
    /// Length of a lease in ms.
    pub lease_ms: u64,
}

/// What a claim comes to. Fences are those of the record that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimVerdict {
    /// Attempt it.
    Go,
    /// An earlier attempt, announced with this text, may have been sent.
    Unknown(String),
    /// Finish this decision.
    Decided(String),
    /// Taken, for so many ms.
    Busy(u64),
    /// Over.
    Settled(Final),
    /// Older than the record.
    Stale,
    /// Another payload.
    Conflict,
}

/// A record to write where there is one, and the answer.
pub type RecordChange<T> = (Option<Record>, T);

/// `epoch_ms` is when the store began to remember.
pub fn claim(record: Option<&Record>, ask: &ClaimInput<'_>, epoch_ms: u64, now_ms: u64) -> RecordChange<ClaimVerdict> {
    let take = |state, fence, note: &str| {
        Some(Record {
            state,
            generation: ask.generation,
            fence,
            holder: ask.holder.to_owned(),
            lease_end_ms: now_ms + ask.lease_ms,
            payload_hash: ask.payload_hash.to_owned(),
            note: note.to_owned(),
        })
    };
    let Some(record) = record else {
        let remembered = ask.published_ms.is_some_and(|published| published > epoch_ms + SKEW_MS);
        return if ask.redelivered && !remembered {
            (take(RecordState::Submitting, now_ms, ""), ClaimVerdict::Unknown(String::new()))
        } else {
            (take(RecordState::Claimed, now_ms, ""), ClaimVerdict::Go)
        };
    };
    let other_payload = !record.payload_hash.is_empty() && record.payload_hash != ask.payload_hash;
    if record.state == RecordState::Alias || other_payload {
        return (None, ClaimVerdict::Conflict);
    }
    if let RecordState::Final(end) = record.state {
        let reopenable = matches!(end, Final::Held | Final::Dead);
        if !reopenable || ask.generation == record.generation {
            return (None, ClaimVerdict::Settled(end));
        }
    }
    if ask.generation < record.generation {
        return (None, ClaimVerdict::Stale);
    }
    if record.state == RecordState::Parked && record.lease_end_ms > now_ms {
        // Postponed: the copy comes back then.
        return (None, ClaimVerdict::Busy(record.lease_end_ms - now_ms));
    }
    if ask.generation > record.generation || record.state == RecordState::Parked {
        return (take(RecordState::Claimed, record.fence + 1, ""), ClaimVerdict::Go);
    }
    let again = record.holder == ask.holder;
    if !again && record.lease_end_ms > now_ms {
        let lease_end_ms = record.lease_end_ms.min(now_ms + LEASE_MAX_MS);
        let cut = (lease_end_ms < record.lease_end_ms).then(|| Record { lease_end_ms, ..record.clone() });
        return (cut, ClaimVerdict::Busy(lease_end_ms - now_ms));
    }
    let fence = if again { record.fence } else { record.fence + 1 };
    let verdict = match record.state {
        RecordState::Submitting => ClaimVerdict::Unknown(record.note.clone()),
        RecordState::Decided => ClaimVerdict::Decided(record.note.clone()),
        RecordState::Claimed | RecordState::Parked | RecordState::Final(_) | RecordState::Alias => ClaimVerdict::Go,
    };
    (take(record.state, fence, &record.note), verdict)
}

/// Nothing changes: the right is gone.
const LOST: RecordChange<LedgerStepResult> = (None, LedgerStepResult::Lost);

/// One step of the owner that `lease` names.
pub fn step(
    record: Option<&Record>,
    lease: &LeaseFacts,
    step: LedgerStep<'_>,
    lease_ms: u64,
    now_ms: u64,
) -> RecordChange<LedgerStepResult> {
    let payload_hash = match record {
        Some(record) if !record.payload_hash.is_empty() => &record.payload_hash,
        _ => &lease.payload_hash,
    };
    let idle = |state, generation| Record {
        state,
        generation,
        fence: lease.fence,
        holder: String::new(),
        lease_end_ms: 0,
        payload_hash: payload_hash.clone(),
        note: String::new(),
    };
    let running = |state, note: &str| Record {
        holder: lease.holder.clone(),
        lease_end_ms: now_ms + lease_ms,
        note: note.to_owned(),
        ..idle(state, lease.generation)
    };
    let ended = |end, note: &str| {
        let (generation, note) = if end == Final::Sent { (0, "") } else { (lease.generation, note) };
        Record { note: note.to_owned(), ..idle(RecordState::Final(end), generation) }
    };
    let parked =
        |note: &str| Record { note: note.to_owned(), ..idle(RecordState::Parked, lease.generation.saturating_add(1)) };
    let done = |record| (Some(record), LedgerStepResult::Done);
    let next = lease.generation.saturating_add(1);

    let Some(record) = record else {
        return match step {
            // The store has lost the record. Nobody knows how far this owner came: the careful state.
            LedgerStep::Submitting(call) => done(running(RecordState::Submitting, call)),
            LedgerStep::Renew | LedgerStep::Withdraw => done(running(RecordState::Submitting, "")),
            LedgerStep::Decide(text) => done(running(RecordState::Decided, text)),
            LedgerStep::Parked(note) => done(parked(note)),
            LedgerStep::Finish(end, note) => done(ended(end, note)),
            LedgerStep::Release => LOST,
        };
    };
    match (step, record.state) {
        (LedgerStep::Finish(Final::Sent, _), RecordState::Final(Final::Sent)) if record.fence == lease.fence => {
            return (None, LedgerStepResult::Done);
        }
        (LedgerStep::Finish(..), RecordState::Final(Final::Sent)) => return (None, LedgerStepResult::SentBefore),
        (LedgerStep::Finish(Final::Sent, _), _) => return done(ended(Final::Sent, "")),
        (LedgerStep::Finish(end, _), RecordState::Final(was))
            if end == was && record.fence == lease.fence && record.generation == lease.generation =>
        {
            return (None, LedgerStepResult::Done);
        }
        (LedgerStep::Parked(_), RecordState::Parked) if record.fence == lease.fence && record.generation == next => {
            return (None, LedgerStepResult::Done);
        }
        _ => {}
    }
    let owned = matches!(record.state, RecordState::Claimed | RecordState::Submitting | RecordState::Decided);
    if !owned || record.holder != lease.holder || record.fence != lease.fence {
        return LOST;
    }
    match step {
        LedgerStep::Submitting(_) | LedgerStep::Withdraw if record.state == RecordState::Decided => LOST,
        LedgerStep::Submitting(call) => done(running(RecordState::Submitting, call)),
        LedgerStep::Withdraw => done(running(RecordState::Claimed, "")),
        LedgerStep::Renew => done(running(record.state, &record.note)),
        LedgerStep::Decide(text) => done(running(RecordState::Decided, text)),
        LedgerStep::Parked(note) => done(parked(note)),
        LedgerStep::Finish(end, note) => done(ended(end, note)),
        LedgerStep::Release if record.state == RecordState::Claimed => {
            done(idle(RecordState::Parked, lease.generation))
        }
        LedgerStep::Release => done(Record { note: record.note.clone(), ..idle(record.state, lease.generation) }),
    }
}

/// What a cancellation comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelTransition {
    /// The answer.
    Answer(Cancelled),
    /// The record stands for another: ask that one.
    Follow(String),
}

/// Calls a job back, also one that nobody has seen yet.
pub fn cancel(record: Option<&Record>) -> RecordChange<CancelTransition> {
    let answer = match record.map(|record| (record.state, record)) {
        Some((RecordState::Alias, record)) => return (None, CancelTransition::Follow(record.note.clone())),
        Some((RecordState::Submitting, _)) => Cancelled::BeingSent,
        Some((RecordState::Final(Final::Sent), _)) => Cancelled::AlreadySent,
        Some((RecordState::Final(end), _)) => Cancelled::AlreadyFinal(end),
        None | Some((RecordState::Claimed | RecordState::Decided | RecordState::Parked, _)) => {
            let tombstone = Record {
                state: RecordState::Final(Final::Cancelled),
                generation: record.map_or(0, |record| record.generation),
                fence: record.map_or(0, |record| record.fence),
                holder: String::new(),
                lease_end_ms: 0,
                payload_hash: record.map(|record| record.payload_hash.clone()).unwrap_or_default(),
                note: String::new(),
            };
            return (Some(tombstone), CancelTransition::Answer(Cancelled::Now));
        }
    };
    (None, CancelTransition::Answer(answer))
}

/// What a postponement comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostponeTransition {
    /// The answer.
    Answer(Postponed),
    /// The record stands for another: ask that one.
    Follow(String),
}

/// The holder of a record that is postponed.
pub const POSTPONED: &str = "postponed";

/// Has a job wait until a time that waits anyway, or that nobody has seen yet.
pub fn postpone(record: Option<&Record>, until_ms: u64, note: &str, now_ms: u64) -> RecordChange<PostponeTransition> {
    let answer = match record.map(|record| record.state) {
        Some(RecordState::Alias) => {
            let target = record.map(|record| record.note.clone()).unwrap_or_default();
            return (None, PostponeTransition::Follow(target));
        }
        Some(RecordState::Claimed | RecordState::Submitting | RecordState::Decided) => Postponed::InHand,
        Some(RecordState::Final(end)) => Postponed::Over(end),
        None | Some(RecordState::Parked) => {
            let waiting = Record {
                state: RecordState::Parked,
                generation: record.map_or(0, |record| record.generation),
                fence: record.map_or(now_ms, |record| record.fence),
                holder: POSTPONED.to_owned(),
                lease_end_ms: until_ms,
                payload_hash: record.map(|record| record.payload_hash.clone()).unwrap_or_default(),
                note: note.to_owned(),
            };
            return (Some(waiting), PostponeTransition::Answer(Postponed::Done));
        }
    };
    (None, PostponeTransition::Answer(answer))
}

/// Notes at the record of a job id which identity it stands for; gives the end that the id itself was brought to.
pub fn alias(record: Option<&Record>, target: &str) -> RecordChange<Option<Final>> {
    match record.map(|record| record.state) {
        Some(RecordState::Final(end)) => (None, Some(end)),
        Some(RecordState::Claimed | RecordState::Submitting | RecordState::Decided | RecordState::Parked) => {
            (None, None)
        }
        None | Some(RecordState::Alias) => {
            let note = Record {
                state: RecordState::Alias,
                generation: 0,
                fence: 0,
                holder: String::new(),
                lease_end_ms: 0,
                payload_hash: String::new(),
                note: target.to_owned(),
            };
            (Some(note), None)
        }
    }
}

/// Lets the copy of `generation`, at rest in `hold` or `dead`, run again.
pub fn reopen(record: Option<&Record>, generation: u32, now_ms: u64) -> RecordChange<Reopened> {
    let next = generation.saturating_add(1);
    if let Some(record) = record {
        // An owner that died after the copy was confirmed and before it could say so leaves `C`, `U` or `D`.
        let at_rest = match record.state {
            RecordState::Final(Final::Sent) => return (None, Reopened::AlreadySent),
            RecordState::Final(Final::Cancelled) => return (None, Reopened::Cancelled),
            RecordState::Parked if record.generation == next => return (None, Reopened::Go),
            RecordState::Final(Final::Held | Final::Dead) | RecordState::Decided => true,
            RecordState::Claimed | RecordState::Submitting => record.lease_end_ms <= now_ms,
            RecordState::Parked | RecordState::Final(_) | RecordState::Alias => false,
        };
        if record.generation > generation || !at_rest {
            return (None, Reopened::Other);
        }
    }
    let parked = Record {
        state: RecordState::Parked,
        generation: next,
        fence: record.map_or(0, |record| record.fence),
        holder: String::new(),
        lease_end_ms: 0,
        payload_hash: record.map(|record| record.payload_hash.clone()).unwrap_or_default(),
        note: String::new(),
    };
    (Some(parked), Reopened::Go)
}

#[cfg(test)]
#[path = "transitions_tests.rs"]
mod tests;
