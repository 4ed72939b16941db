//! How the sender is told what became of a job: `CloudEvents` 1.0 in structured JSON.
//!
//! No event names a recipient by address: recipients stand as field and position in the job (`to[0]`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    fields::{JobId, Lane},
    job::{Job, RecipientField},
    meta::Meta,
    wire::DateTimeText,
};

/// AMQP `content_type` of an event.
pub const EVENT_CONTENT_TYPE: &str = "application/cloudevents+json";

/// What happened. The routing key of an event is `<type>.<tenant>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EventType {
    /// A transport took the message, for the recipients listed.
    #[serde(rename = "postrider.job.accepted.v1")]
    Accepted,
    /// A try failed and another one will follow.
    #[serde(rename = "postrider.job.deferred.v1")]
    Deferred,
    /// A transport refused the message, or the recipients listed, for good.
    #[serde(rename = "postrider.job.rejected.v1")]
    Rejected,
    /// The job passed its `expires_at`.
    #[serde(rename = "postrider.job.expired.v1")]
    Expired,
    /// A person or the sender cancelled the job.
    #[serde(rename = "postrider.job.cancelled.v1")]
    Cancelled,
    /// The job waits for a person: it may have been sent.
    #[serde(rename = "postrider.job.held.v1")]
    Held,
    /// Given up; kept in `postrider.v1.dead`.
    #[serde(rename = "postrider.job.dead.v1")]
    Dead,
    /// A transport refuses everything until a person mends it (credentials, certificate): its circuit is open, jobs wait or go another
    /// way. Not about a job: `tenant` and `lane` say nothing.
    #[serde(rename = "postrider.circuit.opened.v1")]
    CircuitOpened,
    /// The transport works again.
    #[serde(rename = "postrider.circuit.closed.v1")]
    CircuitClosed,
}

impl EventType {
    /// The first word of the routing key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Deferred => "deferred",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::CircuitOpened => "circuit-opened",
            Self::CircuitClosed => "circuit-closed",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Always `1.0`.
    pub specversion: String,
    /// The same when the same event is published twice: `<tenant>/<job id>/<generation>/<type>`, with `/<part>` after the job id where the job was parted;
    /// `unreadable-<digest>` stands for the job id of a message that has none;
    /// `circuit/<transport>/<opened at, in ms>/<type>` where it is about a transport.
    pub id: String,
    /// Always `postrider`.
    pub source: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The job id. Absent for a message that could not be read as a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When.
    #[schemars(with = "DateTimeText")]
    pub time: Timestamp,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The details.
    pub data: EventData,
}

/// The details of an event.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct EventData {
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The sender's own identity for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Whose mail it is.
    pub tenant: String,
    /// The lane.
    pub lane: Lane,
    /// The job's tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The job's metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The route that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The transport that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// The transports that come before it for this job, and why they were not the ones that took it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
    /// The number of the part, where the job's recipients went separate ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u8>,
    /// Counted tries, this one included.
    pub attempt: u32,
    /// How often the job was republished.
    pub generation: u32,
    /// One word, such as `retries-exhausted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The class of the failure, such as `transient` or `recipient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The transport's last answer, at most 200 bytes, without addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The recipients that this event is about; all of them where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<EventRecipient>,
    /// When the next try is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DateTimeText>")]
    pub next_attempt_at: Option<Timestamp>,
}

/// A transport that did not take a job, so that the next one was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PassedOver {
    /// Its name.
    pub transport: String,
    /// The class of its refusal, or `circuit-open`.
    pub reason: String,
    /// What it said, or why it was not asked; at most 200 bytes, without addresses.
    pub answer: String,
}

/// A recipient, named by its place in the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventRecipient {
    /// `to`, `cc` or `bcc`.
    pub field: RecipientField,
    /// Its position in that field, from 0.
    pub position: usize,
    /// What the transport said of this recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl Event {
    /// An event about a job as it stands.
    pub fn about(kind: EventType, job: &Job, meta: &Meta, time: Timestamp) -> Self {
        let data = EventData {
            job_id: Some(job.id()),
            idempotency_key: job.idempotency_key().map(|key| key.as_str().to_owned()),
            tenant: job.tenant().as_str().to_owned(),
            lane: job.lane(),
            tags: job.tags().to_vec(),
            metadata: job.metadata().clone(),
            attempt: meta.attempt,
            generation: meta.generation,
            part: meta.part,
            ..EventData::default()
        };
        Self::new(kind, data, time)
    }

    /// An event with these details.
    pub fn new(kind: EventType, data: EventData, time: Timestamp) -> Self {
        Self::about_message(kind, data, "", time)
    }

    /// The same for a message that may have no job id: `digest` tells it from all others.
    pub fn about_message(kind: EventType, data: EventData, digest: &str, time: Timestamp) -> Self {
        let subject = data.job_id.map(|id| id.to_string());
        // Two tenants may use the same job id.
        let name = subject.clone().unwrap_or_else(|| format!("unreadable-{digest}"));
        let mut id = format!("{}/{name}", data.tenant);
        for number in data.part.map(u32::from).into_iter().chain([data.generation]) {
            id.push('/');
            id.push_str(&number.to_string());
        }
        id.push('/');
        id.push_str(kind.as_str());
        Self::with_id(id, subject, kind, data, time)
    }

    /// An event about the circuit of a transport that opened at `opened`.
    pub fn about_circuit(kind: EventType, transport: &str, opened: Timestamp, answer: &str, time: Timestamp) -> Self {
        let id = format!("circuit/{transport}/{}/{}", opened.as_millisecond(), kind.as_str());
        let data = EventData {
            tenant: crate::Tenant::DEFAULT.to_owned(),
            transport: Some(transport.to_owned()),
            answer: Some(answer.to_owned()),
            ..EventData::default()
        };
        Self::with_id(id, None, kind, data, time)
    }

    fn with_id(id: String, subject: Option<String>, kind: EventType, data: EventData, time: Timestamp) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id,
            source: "postrider".to_owned(),
            kind,
            subject,
            time,
            datacontenttype: "application/json".to_owned(),
            data,
        }
    }

    /// `<type>.<tenant>`.
    pub fn routing_key(&self) -> String {
        format!("{}.{}", self.kind.as_str(), self.data.tenant)
    }

    /// The event on the wire.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of strings, numbers and string-keyed maps: serde_json has nothing to refuse in it.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
