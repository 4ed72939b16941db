//! What each call does to a record, as pure functions over (record, question, now). The embedded store runs these; the Lua
//! scripts of the Redis store say the same, and one contract suite holds the two together.
//!
//! Rules that decide everything else:
//! - a message of an older generation is stale, one of a newer generation proves that the older one ended;
//! - what may have been sent is never attempted again without saying so: an owner that died in `U` leaves `Unknown`, again and
//!   again if need be, and never an end, because that would lose mail;
//! - a yes of a transport is the truth and wins over every other state; all other steps are fenced;
//! - the same call twice does what one does.

use super::ledger::{Cancelled, Final, LeaseFacts, Record, Reopened, State, Step, Stepped};

/// How far the clock of a publisher may be ahead of the store's before a message published just after the store was emptied
/// is taken for unattempted, in ms.
pub const SKEW_MS: u64 = 1000;

/// The longest lease, in ms. One that would last for longer was given out before the store's clock was set back, and is cut where it is found.
pub const LEASE_MAX_MS: u64 = 600_000;

/// A claim, as a transition sees it.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
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
pub enum Verdict {
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
pub type Change<T> = (Option<Record>, T);

/// `epoch_ms` is when the store began to remember.
pub fn claim(record: Option<&Record>, ask: &Ask<'_>, epoch_ms: u64, now_ms: u64) -> Change<Verdict> {
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
            (take(State::Submitting, now_ms, ""), Verdict::Unknown(String::new()))
        } else {
            (take(State::Claimed, now_ms, ""), Verdict::Go)
        };
    };
    let other_payload = !record.payload_hash.is_empty() && record.payload_hash != ask.payload_hash;
    if record.state == State::Alias || other_payload {
        return (None, Verdict::Conflict);
    }
    if let State::Final(end) = record.state {
        let reopenable = matches!(end, Final::Held | Final::Dead);
        if !reopenable || ask.generation == record.generation {
            return (None, Verdict::Settled(end));
        }
    }
    if ask.generation < record.generation {
        return (None, Verdict::Stale);
    }
    if ask.generation > record.generation || record.state == State::Parked {
        return (take(State::Claimed, record.fence + 1, ""), Verdict::Go);
    }
    let again = record.holder == ask.holder;
    if !again && record.lease_end_ms > now_ms {
        let lease_end_ms = record.lease_end_ms.min(now_ms + LEASE_MAX_MS);
        let cut = (lease_end_ms < record.lease_end_ms).then(|| Record { lease_end_ms, ..record.clone() });
        return (cut, Verdict::Busy(lease_end_ms - now_ms));
    }
    let fence = if again { record.fence } else { record.fence + 1 };
    let verdict = match record.state {
        State::Submitting => Verdict::Unknown(record.note.clone()),
        State::Decided => Verdict::Decided(record.note.clone()),
        State::Claimed | State::Parked | State::Final(_) | State::Alias => Verdict::Go,
    };
    (take(record.state, fence, &record.note), verdict)
}

/// Nothing changes: the right is gone.
const LOST: Change<Stepped> = (None, Stepped::Lost);

/// One step of the owner that `lease` names.
pub fn step(
    record: Option<&Record>,
    lease: &LeaseFacts,
    step: Step<'_>,
    lease_ms: u64,
    now_ms: u64,
) -> Change<Stepped> {
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
    let ended = |end| idle(State::Final(end), if end == Final::Sent { 0 } else { lease.generation });
    let done = |record| (Some(record), Stepped::Done);

    let Some(record) = record else {
        return match step {
            // The store has lost the record. Nobody knows how far this owner came: the careful state.
            Step::Submitting(call) => done(running(State::Submitting, call)),
            Step::Renew | Step::Withdraw => done(running(State::Submitting, "")),
            Step::Decide(text) => done(running(State::Decided, text)),
            Step::Parked => done(idle(State::Parked, lease.generation + 1)),
            Step::Finish(end) => done(ended(end)),
            Step::Release => LOST,
        };
    };
    match (step, record.state) {
        (Step::Finish(Final::Sent), State::Final(Final::Sent)) if record.fence == lease.fence => {
            return (None, Stepped::Done);
        }
        (Step::Finish(_), State::Final(Final::Sent)) => return (None, Stepped::SentBefore),
        (Step::Finish(Final::Sent), _) => return done(ended(Final::Sent)),
        (Step::Finish(end), State::Final(was))
            if end == was && record.fence == lease.fence && record.generation == lease.generation =>
        {
            return (None, Stepped::Done);
        }
        (Step::Parked, State::Parked) if record.fence == lease.fence && record.generation == lease.generation + 1 => {
            return (None, Stepped::Done);
        }
        _ => {}
    }
    let owned = matches!(record.state, State::Claimed | State::Submitting | State::Decided);
    if !owned || record.holder != lease.holder || record.fence != lease.fence {
        return LOST;
    }
    match step {
        Step::Submitting(_) | Step::Withdraw if record.state == State::Decided => LOST,
        Step::Submitting(call) => done(running(State::Submitting, call)),
        Step::Withdraw => done(running(State::Claimed, "")),
        Step::Renew => done(running(record.state, &record.note)),
        Step::Decide(text) => done(running(State::Decided, text)),
        Step::Parked => done(idle(State::Parked, lease.generation + 1)),
        Step::Finish(end) => done(ended(end)),
        Step::Release if record.state == State::Claimed => done(idle(State::Parked, lease.generation)),
        Step::Release => done(Record { note: record.note.clone(), ..idle(record.state, lease.generation) }),
    }
}

/// What a cancellation comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelling {
    /// The answer.
    Answer(Cancelled),
    /// The record stands for another: ask that one.
    Follow(String),
}

/// Calls a job back, also one that nobody has seen yet.
pub fn cancel(record: Option<&Record>) -> Change<Cancelling> {
    let answer = match record.map(|record| (record.state, record)) {
        Some((State::Alias, record)) => return (None, Cancelling::Follow(record.note.clone())),
        Some((State::Submitting, _)) => Cancelled::BeingSent,
        Some((State::Final(Final::Sent), _)) => Cancelled::AlreadySent,
        Some((State::Final(end), _)) => Cancelled::AlreadyFinal(end),
        None | Some((State::Claimed | State::Decided | State::Parked, _)) => {
            let tombstone = Record {
                state: State::Final(Final::Cancelled),
                generation: record.map_or(0, |record| record.generation),
                fence: record.map_or(0, |record| record.fence),
                holder: String::new(),
                lease_end_ms: 0,
                payload_hash: record.map(|record| record.payload_hash.clone()).unwrap_or_default(),
                note: String::new(),
            };
            return (Some(tombstone), Cancelling::Answer(Cancelled::Now));
        }
    };
    (None, Cancelling::Answer(answer))
}

/// Notes at the record of a job id which identity it stands for; gives the end that the id itself was brought to.
pub fn alias(record: Option<&Record>, target: &str) -> Change<Option<Final>> {
    match record.map(|record| record.state) {
        Some(State::Final(end)) => (None, Some(end)),
        Some(State::Claimed | State::Submitting | State::Decided | State::Parked) => (None, None),
        None | Some(State::Alias) => {
            let note = Record {
                state: State::Alias,
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
pub fn reopen(record: Option<&Record>, generation: u32, now_ms: u64) -> Change<Reopened> {
    if let Some(record) = record {
        // An owner that died after the copy was confirmed and before it could say so leaves `C`, `U` or `D`.
        let at_rest = match record.state {
            State::Final(Final::Sent) => return (None, Reopened::AlreadySent),
            State::Final(Final::Cancelled) => return (None, Reopened::Cancelled),
            State::Parked if record.generation == generation + 1 => return (None, Reopened::Go),
            State::Final(Final::Held | Final::Dead) | State::Decided => true,
            State::Claimed | State::Submitting => record.lease_end_ms <= now_ms,
            State::Parked | State::Final(_) | State::Alias => false,
        };
        if record.generation > generation || !at_rest {
            return (None, Reopened::Other);
        }
    }
    let parked = Record {
        state: State::Parked,
        generation: generation + 1,
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
