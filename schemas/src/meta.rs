//! What a message remembers between attempts: the `postrider-*` headers and the W3C trace context.
//!
//! All values are text, so that every broker client in every language can read them. On a republish the headers are built
//! from a [`Meta`] alone: nothing of the broker's own (`x-death`, `x-delivery-count`, `CC`, `BCC`) survives, because a copied
//! `x-death` makes RabbitMQ drop or jam the message in the delay ladder.
//!
//! Where a message comes from decides what its headers may say: [`Meta::from_producer`] reads what a producer published,
//! [`Meta::from_pairs`] reads copies that workers made.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::fields::Lane;

/// The state of a message between attempts. `Meta::default()` is a fresh message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// How often the job was republished (parks and retries).
    pub generation: u32,
    /// Counted tries so far. Waiting never counts.
    pub attempt: u32,
    /// How often it was parked without a try.
    pub parks: u32,
    /// How often a transport asked for patience (greylisting, its own limits, quotas), which uses up no try until it was very often.
    pub waits: u32,
    /// How many of its tries ended as unknown.
    pub unknowns: u32,
    /// How many workers were lost with this generation in hand, as far as the broker's own count does not tell: it begins anew with each copy.
    pub losses: u32,
    /// When the job was published first, or seen first where its producer said no time. Kept by all copies.
    pub published: Option<Timestamp>,
    /// What an event said last of why the job waits, and when: the same is not said again soon.
    pub told: Option<String>,
    /// Not to be tried before this time.
    pub not_before: Option<Timestamp>,
    /// Past this time the job expires.
    pub expires: Option<Timestamp>,
    /// The payload hash, 32 hexadecimal digits. Informative: workers compute it anew.
    pub payload_hash: Option<String>,
    /// The last answer of a transport, at most 200 bytes, without addresses.
    pub last: Option<String>,
    /// Recipients still to be served, by envelope index; all where absent.
    pub pending: Option<Vec<u8>>,
    /// The number of the part that this message is, where recipients of a job went separate ways. A part has `pending`.
    pub part: Option<u8>,
    /// The call that may have been taken and can be repeated safely.
    pub pin: Option<Pin>,
    /// Why and how often the job came to rest in `dead` or `hold`.
    pub rest: Option<Rest>,
    /// The broker's user that published the job, as long as nobody has judged whether it may: empty where the broker vouches for none.
    /// A header of a producer never sets it.
    pub publisher: Option<String>,
    /// The name of a header whose value cannot be read and must not be ignored. Such a message is not tried. Never written.
    pub damaged: Option<&'static str>,
    /// W3C `traceparent` of the previous hop.
    pub traceparent: Option<String>,
    /// W3C `tracestate` of the previous hop.
    pub tracestate: Option<String>,
    /// `traceparent` of the job's creation.
    pub trace0: Option<String>,
}

/// A call of a provider that ended without an answer and that the provider recognises when it is repeated. Until then the job goes to no
/// other transport.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pin {
    /// The name of the transport.
    pub transport: String,
    /// When the call was made: the date of the message, which must be the same in each repetition.
    pub since: Timestamp,
    /// Until when the provider recognises it.
    pub until: Timestamp,
}

/// `<since> <until> <transport>`
impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.since, self.until, self.transport)
    }
}

impl std::str::FromStr for Pin {
    type Err = UnreadablePin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.splitn(3, ' ');
        let mut time = || words.next().and_then(|word| word.parse().ok()).ok_or(UnreadablePin);
        let (since, until) = (time()?, time()?);
        let transport = words.next().filter(|name| !name.is_empty()).ok_or(UnreadablePin)?.to_owned();
        Ok(Self { transport, since, until })
    }
}

/// A text that is no [`Pin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected two times and the name of a transport")]
pub struct UnreadablePin;

/// How a job came to rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// One word, such as `retries-exhausted` or `unknown`.
    pub reason: String,
    /// One line for people.
    pub detail: String,
    /// When.
    pub at: Timestamp,
    /// How often in a row it came to rest for the same reason, from 1. Kept over `dead retry`.
    pub times: u32,
    /// The lane it came from, for messages whose body cannot be read.
    pub lane: Option<Lane>,
    /// The transport that was asked last, where one was.
    pub transport: Option<String>,
}

/// Longest header value that is written, in bytes.
pub const VALUE_MAX: usize = 400;

const GENERATION: &str = "postrider-generation";
const ATTEMPT: &str = "postrider-attempt";
const PARKS: &str = "postrider-parks";
const WAITS: &str = "postrider-waits";
const UNKNOWNS: &str = "postrider-unknowns";
const LOSSES: &str = "postrider-losses";
const PUBLISHED: &str = "postrider-published";
const TOLD: &str = "postrider-told";
const NOT_BEFORE: &str = "postrider-not-before";
const EXPIRES: &str = "postrider-expires";
const PAYLOAD_HASH: &str = "postrider-payload-hash";
const LAST: &str = "postrider-last";
const PENDING: &str = "postrider-pending";
const PART: &str = "postrider-part";
const PIN: &str = "postrider-pin";
const REST_REASON: &str = "postrider-rest-reason";
const REST_DETAIL: &str = "postrider-rest-detail";
const REST_AT: &str = "postrider-rest-at";
const REST_TIMES: &str = "postrider-rest-times";
const REST_TRANSPORT: &str = "postrider-rest-transport";
const REST_LANE: &str = "postrider-rest-lane";
const PUBLISHER: &str = "postrider-publisher";
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const TRACE0: &str = "postrider-trace0";

/// The headers that count in a message of a producer. None of them decides whether, when, where or how often a job is sent.
const OF_PRODUCERS: [&str; 5] = [EXPIRES, PAYLOAD_HASH, TRACEPARENT, TRACESTATE, TRACE0];

impl Meta {
    /// Reads the headers of a message that a producer published. It may say what anybody may know; the rest is for workers to say, and is
    /// ignored: such a message is a fresh one.
    pub fn from_producer<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::from_pairs(pairs.into_iter().filter(|(name, _)| OF_PRODUCERS.contains(name)))
    }

    /// Header names and values, in a fixed order; fields at their default are left out.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::with_capacity(8);
        let mut put = |name, value: String| out.push((name, cut(value)));
        let counts = [
            (GENERATION, self.generation),
            (ATTEMPT, self.attempt),
            (PARKS, self.parks),
            (WAITS, self.waits),
            (UNKNOWNS, self.unknowns),
            (LOSSES, self.losses),
        ];
        for (name, count) in counts {
            if count > 0 {
                put(name, count.to_string());
            }
        }
        for (name, time) in [(PUBLISHED, self.published), (NOT_BEFORE, self.not_before), (EXPIRES, self.expires)] {
            if let Some(time) = time {
                put(name, time.to_string());
            }
        }
        if let Some(pending) = &self.pending {
            put(PENDING, pending_text(pending));
        }
        if let Some(part) = self.part {
            put(PART, part.to_string());
        }
        if let Some(pin) = &self.pin {
            put(PIN, pin.to_string());
        }
        if let Some(rest) = &self.rest {
            put(REST_REASON, rest.reason.clone());
            put(REST_DETAIL, rest.detail.clone());
            put(REST_AT, rest.at.to_string());
            put(REST_TIMES, rest.times.to_string());
            if let Some(transport) = &rest.transport {
                put(REST_TRANSPORT, transport.clone());
            }
            if let Some(lane) = rest.lane {
                put(REST_LANE, lane.as_str().to_owned());
            }
        }
        let texts = [
            (PAYLOAD_HASH, &self.payload_hash),
            (PUBLISHER, &self.publisher),
            (LAST, &self.last),
            (TOLD, &self.told),
            (TRACEPARENT, &self.traceparent),
            (TRACESTATE, &self.tracestate),
            (TRACE0, &self.trace0),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                put(name, text.clone());
            }
        }
        out
    }

    /// Reads the headers of a copy that a worker made. Unknown ones are ignored. A value that cannot be read counts as absent, because a
    /// message must not be lost over a header; where that could send mail twice or drop it, the message is [`Self::damaged`].
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut meta = Self::default();
        let mut rest = Rest {
            reason: String::new(),
            detail: String::new(),
            at: Timestamp::UNIX_EPOCH,
            times: 1,
            lane: None,
            transport: None,
        };
        let mut damaged = None;
        for (name, value) in pairs {
            let text = || Some(cut(value.to_owned()));
            match name {
                GENERATION => meta.generation = read_or(value, GENERATION, &mut damaged).unwrap_or_default(),
                ATTEMPT => meta.attempt = value.parse().unwrap_or_default(),
                PARKS => meta.parks = value.parse().unwrap_or_default(),
                WAITS => meta.waits = value.parse().unwrap_or_default(),
                UNKNOWNS => meta.unknowns = value.parse().unwrap_or_default(),
                LOSSES => meta.losses = value.parse().unwrap_or_default(),
                PUBLISHED => meta.published = value.parse().ok(),
                NOT_BEFORE => meta.not_before = value.parse().ok(),
                EXPIRES => meta.expires = value.parse().ok(),
                PAYLOAD_HASH => meta.payload_hash = text(),
                LAST => meta.last = text(),
                TOLD => meta.told = text(),
                PENDING => meta.pending = Some(pending_list(value)),
                PART => meta.part = read_or(value, PART, &mut damaged),
                PIN => meta.pin = read_or(value, PIN, &mut damaged),
                REST_REASON => rest.reason = value.to_owned(),
                REST_DETAIL => rest.detail = value.to_owned(),
                REST_AT => rest.at = value.parse().unwrap_or_default(),
                REST_TIMES => rest.times = value.parse().unwrap_or(1),
                REST_TRANSPORT => rest.transport = text(),
                REST_LANE => rest.lane = value.parse().ok(),
                PUBLISHER => meta.publisher = text(),
                TRACEPARENT => meta.traceparent = text(),
                TRACESTATE => meta.tracestate = text(),
                TRACE0 => meta.trace0 = text(),
                _ => {}
            }
        }
        meta.rest = (!rest.reason.is_empty()).then_some(rest);
        meta.damaged = damaged;
        meta
    }
}

/// A value that must not be ignored: where it cannot be read, its header is noted.
fn read_or<T: std::str::FromStr>(value: &str, name: &'static str, damaged: &mut Option<&'static str>) -> Option<T> {
    let read = value.parse().ok();
    if read.is_none() {
        *damaged = Some(name);
    }
    read
}

fn pending_text(pending: &[u8]) -> String {
    let mut out = String::with_capacity(pending.len() * 3);
    for (n, index) in pending.iter().enumerate() {
        let _ = write!(out, "{}{index}", if n > 0 { "," } else { "" });
    }
    out
}

/// An unreadable list counts as absent only if that is safe: it is not, because recipients that were served would be served
/// again. It therefore counts as "nobody" and the caller dead-letters the message. The same goes for a list that names somebody twice, or is longer
/// than any that is written.
fn pending_list(text: &str) -> Vec<u8> {
    if text.len() > VALUE_MAX {
        return Vec::new();
    }
    let list: Vec<u8> = text.split(',').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
    let is_distinct = list.iter().enumerate().all(|(n, index)| !list[..n].contains(index));
    if is_distinct { list } else { Vec::new() }
}

fn cut(mut value: String) -> String {
    if value.len() > VALUE_MAX {
        let mut end = VALUE_MAX;
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        value.truncate(end);
    }
    value.retain(|c| !c.is_control());
    value
}

#[cfg(test)]
#[path = "meta_tests.rs"]
mod tests;
