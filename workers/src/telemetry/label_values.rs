//! The values that labels may have, and the names that are bounded because they come from a configuration. No label can have another value:
//! nothing else makes one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use opentelemetry::StringValue;

use crate::{
    policy::outcome::{Class, Outcome},
    queue::SourceKind,
};

/// Most names that one label has over the life of a process, the name for all others included.
pub const NAMES_MAX: usize = 64;

/// `lane`
pub const LANES: [&str; 2] = ["transactional", "bulk"];
/// `outcome`
pub const OUTCOMES: [&str; 5] = ["accepted", "refused", "unknown", "lost_claim", INTERRUPTED];
/// The outcome of an attempt that was given up before there was one.
pub const INTERRUPTED: &str = "interrupted";
/// `class`
pub const CLASSES: [&str; 12] = [
    "none",
    "recipient",
    "message",
    "template_limit",
    "unsupported",
    "config",
    "sender",
    "throttled",
    "quota",
    "unavailable",
    "transient",
    "local",
];
/// `source`
pub const SOURCES: [&str; 3] = ["jobs", "due", "suspect"];
/// `park_reason`
pub const PARK_REASONS: [&str; 15] = [
    "send_at",
    "retry",
    "limit",
    "transport_overloaded",
    "render",
    "store",
    "throttled",
    "quota",
    "unavailable",
    "config",
    "sender",
    "circuit",
    "local",
    "busy",
    "memory",
];
/// `bucket_scope`
pub const BUCKET_SCOPES: [&str; 4] = ["transport", "group", "tenant", "sender_domain"];
/// `policy`
pub const POLICIES: [&str; 2] = ["hold", "resend"];
/// `duplicate`
pub const DUPLICATES: [&str; 3] = ["settled", "stale", "already_sent"];
/// `dead_reason`
pub const DEAD_REASONS: [&str; 9] = [
    "retries-exhausted",
    "cannot-be-sent",
    "template-limit",
    "no-route",
    "publisher-not-allowed",
    "unreadable",
    "conflict",
    "crash-poison",
    "other",
];
/// `held_reason`
pub const HELD_REASONS: [&str; 2] = ["unknown", "other"];
/// `circuit_state`
pub const CIRCUIT_STATES: [&str; 3] = ["closed", "half_open", "open"];
/// `connection`
pub const CONNECTIONS: [&str; 2] = ["consume", "publish"];
/// `pool_state`
pub const POOL_STATES: [&str; 2] = ["busy", "idle"];
/// `stage`
pub const STAGES: [&str; 10] =
    ["compose", "connect", "tls", "hello", "auth", "mail_from", "rcpt_to", "data", "body", "call"];
/// `rest_queue`
pub const REST_QUEUES: [&str; 5] = ["dead", "hold", "suspect", "unroutable", "events"];
/// `level`
pub const LEVELS: [&str; 7] = ["0", "1", "2", "3", "4", "5", "6"];
/// `reload`
pub const RELOADS: [&str; 2] = ["applied", "refused"];

/// The word of this list that `text` is; its last one for anything else.
pub fn one_of<const N: usize>(list: [&'static str; N], text: &str) -> &'static str {
    list.into_iter().find(|word| *word == text).unwrap_or(list[N - 1])
}

/// The word for a source.
pub fn source(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Jobs => SOURCES[0],
        SourceKind::Due => SOURCES[1],
        SourceKind::Suspect => SOURCES[2],
    }
}

/// The word for a kind of scope, which stands in front of a scope's name.
pub fn bucket_scope(kind: &str) -> &'static str {
    match kind {
        "transport" => BUCKET_SCOPES[0],
        "group" => BUCKET_SCOPES[1],
        "tenant" => BUCKET_SCOPES[2],
        _ => BUCKET_SCOPES[3],
    }
}

/// The word for an outcome.
pub fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted { .. } => OUTCOMES[0],
        Outcome::Refused { .. } => OUTCOMES[1],
        Outcome::Unknown(_) => OUTCOMES[2],
        Outcome::LostClaim => OUTCOMES[3],
    }
}

/// The class of an outcome, `none` unless a transport refused.
pub fn class(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Refused { refusal, .. } => refusal.class.as_str(),
        _ => CLASSES[0],
    }
}

/// Why a job is deferred after a refusal of this class.
pub fn park_reason(class: Class) -> &'static str {
    match class {
        Class::Config => "config",
        Class::Sender => "sender",
        Class::Throttled => "throttled",
        Class::Quota => "quota",
        Class::Unavailable => "unavailable",
        Class::Local => "local",
        Class::Recipient | Class::Message | Class::TemplateLimit | Class::Unsupported | Class::Transient => "retry",
    }
}

/// Names out of a configuration: those that were there when the process began, and those that came by reloads while there was room.
pub struct KnownNames {
    known: ArcSwap<Vec<Arc<str>>>,
    rest: &'static str,
}

impl KnownNames {
    /// None yet; `rest` stands for every other name.
    pub fn new(rest: &'static str) -> Self {
        Self { known: ArcSwap::default(), rest }
    }

    /// Makes room for these, up to [`NAMES_MAX`] in all. What is known stays.
    pub fn learn<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut known = self.known.load_full().as_ref().clone();
        for name in names {
            if known.len() + 1 < NAMES_MAX && !known.iter().any(|one| &**one == name) {
                known.push(name.into());
            }
        }
        self.known.store(Arc::new(known));
    }

    /// All that are known.
    pub fn all(&self) -> Vec<Arc<str>> {
        self.known.load_full().as_ref().clone()
    }

    /// The value of the label.
    pub fn label(&self, name: &str) -> StringValue {
        match self.known.load().iter().find(|one| &***one == name) {
            Some(known) => StringValue::from(Arc::clone(known)),
            None => StringValue::from(self.rest),
        }
    }
}
