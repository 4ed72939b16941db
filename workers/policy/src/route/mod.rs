//! Which rule takes a job, or each of its recipients, and by which transports in which order.

pub mod pattern;
pub mod when;

use postrider_schemas::{Job, Lane, fields::JobId};

pub use self::when::{Condition, When};

/// All rules, in order.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    list: Vec<Route>,
    /// Some rule looks at the recipient: one job may need several.
    per_recipient: bool,
}

/// One rule. The first one that matches decides.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name in logs, events and `explain`.
    pub name: String,
    /// Which jobs it takes.
    pub when: When,
    /// The transports it sends by.
    pub send: Send,
    /// What follows when a limit makes the job wait.
    pub on_limit: OnLimit,
    /// What follows when an attempt ends as unknown; by lane where absent.
    pub on_unknown: Option<OnUnknown>,
}

/// Transports by their position in the configuration's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Send {
    /// The first; the next one where the first certainly did not take the message.
    Ordered(Vec<usize>),
    /// Each for its share of the jobs. The other ones follow it, in an order of their own for each job.
    Weighted(Vec<(usize, u32)>),
}

/// What follows when a rate limit, a quota or a transport that asks for patience makes a job wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLimit {
    /// The job waits for this transport.
    #[default]
    Wait,
    /// The next transport is tried; the job waits where there is none.
    Next,
    /// The job expires: late is worse than never.
    Expire,
}

/// What follows an attempt that may have sent the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// A person decides: never a duplicate, perhaps a delay.
    Hold,
    /// Send again: never a loss, perhaps a duplicate.
    Resend,
}

impl OnUnknown {
    /// The policy where a route names none: somebody waits for transactional mail, nobody wants a newsletter twice.
    pub fn by_lane(lane: Lane) -> Self {
        match lane {
            Lane::Transactional => Self::Resend,
            Lane::Bulk => Self::Hold,
        }
    }
}

impl Route {
    /// The policy for this job.
    pub fn on_unknown(&self, job: &Job) -> OnUnknown {
        self.on_unknown.unwrap_or_else(|| OnUnknown::by_lane(job.lane()))
    }

    /// Every transport that it names.
    pub fn transports(&self) -> impl Iterator<Item = usize> + '_ {
        let (ordered, weighted) = match &self.send {
            Send::Ordered(list) => (list.as_slice(), [].as_slice()),
            Send::Weighted(list) => ([].as_slice(), list.as_slice()),
        };
        ordered.iter().copied().chain(weighted.iter().map(|(transport, _)| *transport))
    }

    /// The transports in the order in which this job tries them: the same for each attempt of the job.
    pub fn order(&self, id: JobId) -> Vec<usize> {
        match &self.send {
            Send::Ordered(list) => list.clone(),
            Send::Weighted(list) => {
                // Weighted rendezvous hashing: each transport draws a number for the job, and a change of one weight
                // moves no job between two others.
                let mut drawn: Vec<(f64, usize)> =
                    list.iter().map(|(transport, weight)| (score(id, *transport, *weight), *transport)).collect();
                drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
                drawn.into_iter().map(|(_, transport)| transport).collect()
            }
        }
    }
}

/// The smallest one wins, with a probability in proportion to the weight: an exponential variate with that rate.
fn score(id: JobId, transport: usize, weight: u32) -> f64 {
    let (high, low) = id.0.as_u64_pair();
    let mut z = low ^ high.rotate_left(32) ^ (transport as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
    }
    let top = u32::try_from(z >> 32).unwrap_or(u32::MAX);
    let uniform = (f64::from(top) + 0.5) / (f64::from(u32::MAX) + 1.0);
    -uniform.ln() / f64::from(weight.max(1))
}

/// What the rules say of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routed {
    /// One rule, by its position, takes it for everybody.
    One(usize),
    /// Its recipients part ways: the rule and the envelope indices of each part, in the order of their first recipients.
    Parts(Vec<RoutePart>),
    /// No rule takes it. Never with a checked configuration that has rules.
    Nobody,
}

/// Recipients who go the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePart {
    /// The rule.
    pub route: usize,
    /// Envelope indices.
    pub recipients: Vec<u8>,
}

impl Routes {
    /// Rules in order.
    pub fn new(list: Vec<Route>) -> Self {
        let per_recipient = list.iter().any(|route| route.when.looks_at_recipients());
        Self { list, per_recipient }
    }

    /// The rules.
    pub fn list(&self) -> &[Route] {
        &self.list
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Routes the recipients at these envelope indices, all where absent.
    pub fn route(&self, job: &Job, pending: Option<&[u8]>) -> Routed {
        let recipients = job.recipients();
        let first = |recipient| self.list.iter().position(|route| route.when.first_failing(job, recipient).is_none());
        let mut indices = (0..u8::MAX).take(recipients.len()).filter(|index| pending.is_none_or(|p| p.contains(index)));
        if !self.per_recipient {
            let Some(any) = indices.next() else { return Routed::Nobody };
            return first(&recipients[usize::from(any)]).map_or(Routed::Nobody, Routed::One);
        }
        let mut parts: Vec<RoutePart> = Vec::new();
        for index in indices {
            let Some(route) = first(&recipients[usize::from(index)]) else { return Routed::Nobody };
            match parts.iter_mut().find(|part| part.route == route) {
                Some(part) => part.recipients.push(index),
                None => parts.push(RoutePart { route, recipients: vec![index] }),
            }
        }
        match parts.as_slice() {
            [] => Routed::Nobody,
            [one] => Routed::One(one.route),
            _ => Routed::Parts(parts),
        }
    }

    /// Why each rule before the one that takes this recipient does not: its position and the condition that fails. Ends with
    /// the rule that matches, without a condition.
    pub fn explain(&self, job: &Job, recipient: usize) -> Vec<(usize, Option<&Condition>)> {
        let recipients = job.recipients();
        let mut steps = Vec::new();
        let Some(recipient) = recipients.get(recipient) else { return steps };
        for (n, route) in self.list.iter().enumerate() {
            let failing = route.when.first_failing(job, recipient);
            steps.push((n, failing));
            if failing.is_none() {
                break;
            }
        }
        steps
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
