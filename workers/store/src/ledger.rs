//! The words of the ledger: what is asked of it, what it answers, and the rights it gives out. Data only.
//!
//! One record per job identity:
//!
//! | state | meaning |
//! |---|---|
//! | `C` claimed | somebody may attempt the job until the lease ends |
//! | `U` submitting | bytes may have reached a transport |
//! | `D` decided | the outcome of this generation is known and is not "sent"; the copy may not be confirmed yet |
//! | `P` parked | the copy is confirmed, or the claim was given back: nobody works on it |
//! | `S`, `F`, `H` | sent; over for another reason; held for a person |
//! | `A` alias | stands for the identity of a job with an idempotency key |

use std::{fmt, time::Duration};

use jiff::Timestamp;
use postrider_schemas::{job::Identity, payload_hash::PayloadHash};

/// Longest text of a decision, in bytes.
pub const DECISION_MAX: usize = 2048;

/// Names the record of one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LedgerKey(String);

impl LedgerKey {
    /// The record of a job.
    pub fn of(identity: &Identity) -> Self {
        Self(identity.as_str().to_owned())
    }

    /// The record of what a message is about: a job, or one part of it.
    pub fn of_message(identity: &Identity, part: Option<u8>) -> Self {
        let whole = Self::of(identity);
        part.map_or_else(|| whole.clone(), |part| whole.part(part))
    }

    /// The record of one part of this job.
    #[must_use]
    pub fn part(&self, part: u8) -> Self {
        Self(format!("{}/{part}", self.0))
    }

    /// ASCII without braces or spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that the ledger itself wrote down.
    pub fn noted(text: String) -> Self {
        Self(text)
    }
}

/// Asks for the right to attempt a job now.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Which job.
    pub key: LedgerKey,
    /// What it says.
    pub payload_hash: PayloadHash,
    /// The generation that the message carries.
    pub generation: u32,
    /// The queue has delivered this message before.
    pub redelivered: bool,
    /// When this message was published, where that is known.
    pub published_at: Option<Timestamp>,
}

/// The answer to a [`ClaimRequest`].
#[derive(Debug)]
pub enum Claim {
    /// Attempt it.
    Go(Lease),
    /// Somebody else is at it, or it was postponed; ask again after this time.
    Busy {
        /// More than zero; at most the longest lease, unless it was postponed.
        retry_in: Duration,
    },
    /// Nothing is left to do.
    Settled(Final),
    /// A copy of a later generation exists: this message is to be dropped.
    Stale,
    /// An earlier attempt may have been sent and nobody knows.
    Unknown {
        /// The right to act on that.
        lease: Lease,
        /// What was handed to [`super::Store::submitting`]; empty where the ledger never heard of the attempt.
        call: String,
    },
    /// An earlier owner decided and did not come to the end: finish its settlement, attempt nothing.
    Decided {
        /// The right to do so.
        lease: Lease,
        /// What was handed to [`super::Store::decide`].
        decision: String,
    },
    /// The same identity with another payload: never to be sent.
    Conflict,
}

impl Claim {
    /// The word of the answer.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Go(_) => "go",
            Self::Busy { .. } => "busy",
            Self::Settled(_) => "settled",
            Self::Stale => "stale",
            Self::Unknown { .. } => "unknown",
            Self::Decided { .. } => "decided",
            Self::Conflict => "conflict",
        }
    }
}

/// The right to act on one generation of a job. Spent by value, so that nothing can act after the end. `Debug` names no payload.
pub struct Lease {
    pub(super) key: LedgerKey,
    pub(super) facts: LeaseFacts,
}

/// What tells one owner of a record from all others, before and after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFacts {
    /// Differs for every call of `claim`.
    pub holder: String,
    /// Grows with every change of hands. Starts at the clock in ms, so that a store that was emptied repeats none.
    pub fence: u64,
    /// The generation that was claimed.
    pub generation: u32,
    /// 32 hexadecimal digits, to write a record anew that the store has lost.
    pub payload_hash: String,
}

impl Lease {
    /// Which job.
    pub fn key(&self) -> &LedgerKey {
        &self.key
    }

    /// The generation that was claimed.
    pub fn generation(&self) -> u32 {
        self.facts.generation
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key.0)
            .field("fence", &self.facts.fence)
            .field("generation", &self.facts.generation)
            .finish_non_exhaustive()
    }
}

/// How a job ended, as far as the ledger is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Final {
    /// A transport took it.
    Sent,
    /// The copy in `hold` is confirmed.
    Held,
    /// Refused for good.
    Rejected,
    /// Too late to be of use.
    Expired,
    /// Called back.
    Cancelled,
    /// The copy in `dead` is confirmed.
    Dead,
    /// The copies of its parts are confirmed; each part has a record of its own.
    Split,
}

impl Final {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::Sent, Self::Held, Self::Rejected, Self::Expired, Self::Cancelled, Self::Dead, Self::Split];

    /// The word that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Held => "held",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
            Self::Split => "split",
        }
    }

    /// Reads the stored word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == word)
    }
}

/// What became of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The record says so now, or said so after an earlier call with the same lease.
    Recorded,
    /// Somebody else had it sent. For a mark `Sent` this is a duplicate delivery.
    WasSentBefore,
    /// Another owner took over; nothing was changed. Never the answer to a mark `Sent`.
    LostLease,
}

/// The answer to a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It will not be sent.
    Now,
    /// Too late.
    AlreadySent,
    /// Over for another reason, cancelled before or held (`hold drop` ends that) included.
    AlreadyFinal(Final),
    /// Bytes may be under way; ask again.
    BeingSent,
}

/// The answer to a postponement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postponed {
    /// No worker gets it before the new time.
    Done,
    /// A worker has it in hand.
    InHand,
    /// It is over.
    Over(Final),
}

/// The answer to a person who wants a job at rest to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// Publish the copy with the generation after the one that was named.
    Go,
    /// It has been sent meanwhile.
    AlreadySent,
    /// It was cancelled.
    Cancelled,
    /// It is not at rest: a later generation exists, somebody works on it, or it ended otherwise.
    Other,
}

/// The state of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// `C`
    Claimed,
    /// `U`
    Submitting,
    /// `D`
    Decided,
    /// `P`
    Parked,
    /// `S`, `H`, or `F` with its word
    Final(Final),
    /// `A`
    Alias,
}

/// What the ledger remembers of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The state.
    pub state: RecordState,
    /// The generation that the state speaks of; 0 once sent.
    pub generation: u32,
    /// See [`LeaseFacts::fence`].
    pub fence: u64,
    /// Empty where nobody works on it.
    pub holder: String,
    /// End of the lease by the store's clock, in ms of the Unix epoch; 0 without a holder. Of a postponed `P` the time until which nobody gets it.
    pub lease_end_ms: u64,
    /// 32 hexadecimal digits; empty where no claim was made yet.
    pub payload_hash: String,
    /// Of `D` the decision, of `U` the call that was announced, of `A` the identity that it stands for, of `P` and of ends what its owner noted for
    /// people.
    pub note: String,
}

/// One step of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerStep<'a> {
    /// `C` to `U`, with a text that tells the call from others.
    Submitting(&'a str),
    /// `U` to `C`: the transport certainly did not take the message, and another one is to be tried.
    Withdraw,
    /// Another lease from now on.
    Renew,
    /// To `D` with this text.
    Decide(&'a str),
    /// To `P`, one generation on, with a text for people.
    Parked(&'a str),
    /// Back to where anybody may take it.
    Release,
    /// The end, with a text for people; of what was sent nothing is kept.
    Finish(Final, &'a str),
}

/// The answer to a [`LedgerStep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerStepResult {
    /// Done, now or by an earlier call with the same arguments.
    Done,
    /// The right is gone.
    Lost,
    /// Somebody else had it sent.
    SentBefore,
}

impl From<LedgerStepResult> for Finished {
    fn from(stepped: LedgerStepResult) -> Self {
        match stepped {
            LedgerStepResult::Done => Self::Recorded,
            LedgerStepResult::Lost => Self::LostLease,
            LedgerStepResult::SentBefore => Self::WasSentBefore,
        }
    }
}
