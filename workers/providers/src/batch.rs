//! Jobs that share a call: which go together, and what its answer means for each. Pure; the calls are made by the batcher.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
};

use serde_json::Value;

use super::reply::ReplyVerdict;
use postrider_policy::outcome::Class;

/// A job's part of a call. Those with the same `shared` part may go together.
#[derive(Clone, PartialEq)]
pub struct Item {
    /// What all jobs of one call have in common; empty where each message of a call stands for itself.
    pub shared: String,
    /// What is this job's own.
    pub own: Value,
}

impl Item {
    /// About how much it adds to the body of a call, in bytes.
    pub fn bytes(&self) -> usize {
        let mut counter = Counter(0);
        // A counter refuses nothing.
        let _ = serde_json::to_writer(&mut counter, &self.own);
        counter.0 + 1
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("shared", &self.shared.len()).field("own", &self.bytes()).finish()
    }
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the answer to a shared call says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batched {
    /// Of each job, in the order of the call.
    Each(Vec<ReplyVerdict>),
    /// Of the call as a whole.
    Whole(ReplyVerdict),
}

/// How much fits into one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Most jobs.
    pub jobs_max: usize,
    /// Largest body, in bytes. A job that is larger by itself goes alone.
    pub bytes_max: usize,
}

/// Calls that wait for more jobs.
#[derive(Debug)]
pub struct BatchGroups<T> {
    limits: CallLimits,
    opened: u64,
    open: HashMap<String, BatchGroup<T>>,
}

#[derive(Debug)]
struct BatchGroup<T> {
    number: u64,
    bytes: usize,
    addresses: HashSet<String>,
    members: Vec<T>,
}

/// What follows from a job that was added.
#[derive(Debug, PartialEq, Eq)]
pub struct Added<T> {
    /// Calls that are to be made now.
    pub ready: Vec<Vec<T>>,
    /// A call was opened with this number: to be closed after the linger.
    pub opened: Option<u64>,
}

impl<T> BatchGroups<T> {
    /// None yet.
    pub fn new(limits: CallLimits) -> Self {
        Self { limits, opened: 0, open: HashMap::new() }
    }

    /// Adds a job to the call of those with the same `shared` part. `address` is the one that may stand only once in a call.
    pub fn add(&mut self, shared: &str, bytes: usize, address: Option<String>, member: T) -> Added<T> {
        let mut ready = Vec::new();
        let does_fit = |group: &BatchGroup<T>| {
            group.bytes + bytes <= self.limits.bytes_max
                && address.as_ref().is_none_or(|address| !group.addresses.contains(address))
        };
        if self.open.get(shared).is_some_and(|group| !does_fit(group)) {
            ready.extend(self.open.remove(shared).map(|group| group.members));
        }
        let mut opened = None;
        let group = self.open.entry(shared.to_owned()).or_insert_with(|| {
            self.opened += 1;
            opened = Some(self.opened);
            let (addresses, members) = (HashSet::new(), Vec::new());
            BatchGroup { number: self.opened, bytes: shared.len(), addresses, members }
        });
        group.bytes += bytes;
        group.addresses.extend(address);
        group.members.push(member);
        if group.members.len() >= self.limits.jobs_max || group.bytes > self.limits.bytes_max {
            ready.extend(self.open.remove(shared).map(|group| group.members));
            opened = None;
        }
        Added { ready, opened }
    }

    /// The members of the call that was opened with this number, unless it was made meanwhile.
    pub fn close(&mut self, shared: &str, number: u64) -> Option<Vec<T>> {
        if self.open.get(shared)?.number != number {
            return None;
        }
        self.open.remove(shared).map(|group| group.members)
    }
}

/// What to do after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchStep {
    /// Each job has its verdict, in the order of the call.
    Each(Vec<ReplyVerdict>),
    /// All jobs have the same verdict.
    All(ReplyVerdict),
    /// The call was refused for the sake of one of its jobs: each half is tried by itself.
    Halve,
    /// The same call again.
    Repeat,
}

/// Reads the answer to a call for so many jobs. `in_doubt` says that the same call was made before without a clear end: a refusal proves
/// nothing then. `may_repeat` says that the provider recognises the call when it is repeated, and that it was not repeated too often yet.
pub fn step(answer: Batched, jobs: usize, in_doubt: bool, may_repeat: bool) -> BatchStep {
    let verdict = match answer {
        Batched::Each(list) if list.len() == jobs => {
            return BatchStep::Each(list.into_iter().map(|verdict| with_doubt(verdict, in_doubt)).collect());
        }
        Batched::Each(list) => {
            ReplyVerdict::Unclear(format!("an answer for {} messages, where {jobs} were sent", list.len()))
        }
        Batched::Whole(verdict) => with_doubt(verdict, in_doubt),
    };
    match verdict {
        ReplyVerdict::Refused {
            class: Class::Message | Class::Recipient | Class::Unsupported | Class::Sender, ..
        } if jobs > 1 => BatchStep::Halve,
        ReplyVerdict::Unclear(_) if may_repeat => BatchStep::Repeat,
        verdict => BatchStep::All(verdict),
    }
}

fn with_doubt(verdict: ReplyVerdict, in_doubt: bool) -> ReplyVerdict {
    match verdict {
        ReplyVerdict::Refused { text, .. } if in_doubt => {
            ReplyVerdict::Unclear(format!("the call may have been taken before its repetition was refused: {text}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reply::testing::shown;

    const LIMITS: CallLimits = CallLimits { jobs_max: 3, bytes_max: 100 };

    #[test]
    fn jobs_with_the_same_content_go_together_until_a_call_is_full() {
        let mut groups = BatchGroups::new(LIMITS);
        assert_eq!(groups.add("x", 10, None, 1), Added { ready: vec![], opened: Some(1) });
        assert_eq!(groups.add("y", 10, None, 2), Added { ready: vec![], opened: Some(2) });
        assert_eq!(groups.add("x", 10, None, 3), Added { ready: vec![], opened: None });
        assert_eq!(groups.add("x", 10, None, 4), Added { ready: vec![vec![1, 3, 4]], opened: None });
        assert_eq!(groups.close("x", 1), None);
        assert_eq!(groups.close("y", 2), Some(vec![2]));
        assert_eq!(groups.close("y", 2), None);
    }

    #[test]
    fn a_linger_that_is_over_does_not_end_the_next_call() {
        let mut groups = BatchGroups::new(LIMITS);
        groups.add("x", 90, None, 1);
        assert_eq!(groups.add("x", 20, None, 2), Added { ready: vec![vec![1]], opened: Some(2) });
        assert_eq!(groups.close("x", 1), None);
        assert_eq!(groups.close("x", 2), Some(vec![2]));
    }

    #[test]
    fn a_job_as_large_as_a_call_goes_alone() {
        let mut groups = BatchGroups::new(LIMITS);
        assert_eq!(groups.add("x", 200, None, 1), Added { ready: vec![vec![1]], opened: None });
    }

    #[test]
    fn an_address_stands_once_in_a_call() {
        let mut groups = BatchGroups::new(LIMITS);
        let address = |text: &str| Some(text.to_owned());
        groups.add("x", 1, address("a"), 1);
        groups.add("x", 1, address("b"), 2);
        assert_eq!(groups.add("x", 1, address("a"), 3), Added { ready: vec![vec![1, 2]], opened: Some(2) });
    }

    proptest! {
        #[test]
        fn every_job_is_in_one_call_and_no_call_breaks_a_limit(jobs in proptest::collection::vec((0_usize..3, 0_usize..130, 0_usize..4), 0..60)) {
            let mut groups = BatchGroups::new(LIMITS);
            let mut calls = Vec::new();
            let mut opened = Vec::new();
            for (n, (shared, bytes, address)) in jobs.iter().enumerate() {
                let shared = ["", "x", "y"][*shared];
                let added = groups.add(shared, *bytes, Some(address.to_string()), n);
                calls.extend(added.ready);
                opened.extend(added.opened.map(|number| (shared, number)));
            }
            calls.extend(opened.into_iter().filter_map(|(shared, number)| groups.close(shared, number)));
            let mut seen: Vec<usize> = calls.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..jobs.len()).collect::<Vec<_>>());
            for call in calls {
                let of = |n: usize| jobs[n];
                prop_assert!((1..=LIMITS.jobs_max).contains(&call.len()));
                prop_assert!(call.iter().all(|n| of(*n).0 == of(call[0]).0));
                let bytes: usize = call.iter().map(|n| of(*n).1).sum();
                prop_assert!(call.len() == 1 || bytes <= LIMITS.bytes_max);
                let addresses: HashSet<usize> = call.iter().map(|n| of(*n).2).collect();
                prop_assert_eq!(addresses.len(), call.len());
            }
        }
    }

    fn whole(class: Class) -> Batched {
        Batched::Whole(ReplyVerdict::refused(class, "why"))
    }

    fn taken(count: usize) -> Batched {
        Batched::Each(vec![ReplyVerdict::Taken("id".to_owned()); count])
    }

    #[track_caller]
    fn check(answer: Batched, jobs: usize, in_doubt: bool, may_repeat: bool, expected: &str) {
        let shown = match step(answer, jobs, in_doubt, may_repeat) {
            BatchStep::Each(list) => list.iter().map(shown).collect::<Vec<_>>().join(", "),
            BatchStep::All(verdict) => format!("all {}", shown(&verdict)),
            BatchStep::Halve => "halve".to_owned(),
            BatchStep::Repeat => "repeat".to_owned(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_answer_for_each_is_theirs() {
        check(taken(2), 2, false, false, "taken id, taken id");
        check(taken(1), 2, false, false, "all unclear");
        check(taken(3), 2, false, true, "repeat");
        let mixed =
            Batched::Each(vec![ReplyVerdict::refused(Class::Recipient, "why"), ReplyVerdict::Taken("id".to_owned())]);
        check(mixed.clone(), 2, false, false, "recipient, taken id");
        check(mixed, 2, true, true, "unclear, taken id");
    }

    #[test]
    fn a_call_refused_for_one_is_halved_until_that_one_is_alone() {
        for class in [Class::Message, Class::Recipient, Class::Unsupported, Class::Sender] {
            check(whole(class), 2, false, true, "halve");
            check(whole(class), 1, false, true, &format!("all {}", class.as_str()));
        }
    }

    #[test]
    fn a_refusal_that_is_about_the_account_is_everyones() {
        for class in [Class::Throttled, Class::Quota, Class::Config, Class::Transient] {
            check(whole(class), 2, false, true, &format!("all {}", class.as_str()));
        }
    }

    #[test]
    fn an_unclear_end_is_repeated_where_that_is_safe() {
        let unclear = || Batched::Whole(ReplyVerdict::Unclear(String::new()));
        check(unclear(), 2, false, false, "all unclear");
        check(unclear(), 2, false, true, "repeat");
        check(Batched::Whole(ReplyVerdict::Taken("id".to_owned())), 2, true, true, "all taken id");
        // After a call that may have been taken no refusal proves anything.
        for class in [Class::Message, Class::Throttled, Class::Config, Class::Transient] {
            check(whole(class), 2, true, true, "repeat");
            check(whole(class), 2, true, false, "all unclear");
        }
    }
}
