//! Every name that telemetry speaks: instruments with their labels, and the attributes of spans. The instruments are those of `deploy/metrics.toml`,
//! which dashboards and alerts read; `build.rs` makes [`Name`] and [`INSTRUMENTS`] of it. What is not named is not told.

/// What an instrument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstrumentKind {
    /// Only grows.
    Counter,
    /// A present value.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One instrument.
#[derive(Debug)]
pub struct Instrument {
    /// Its name by OpenTelemetry.
    pub name: &'static str,
    /// What it is.
    pub kind: InstrumentKind,
    /// UCUM.
    pub unit: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// The labels that it bears, all of them each time.
    pub labels: &'static [&'static str],
    /// The upper bounds of a histogram.
    pub buckets: &'static [f64],
}

include!(concat!(env!("OUT_DIR"), "/instruments.rs"));

impl Name {
    /// The instrument.
    pub fn instrument(self) -> &'static Instrument {
        &INSTRUMENTS[self as usize]
    }
}

/// The attributes of spans. Those below `postrider.` are our own; the others are OpenTelemetry's semantic conventions for messaging, databases,
/// HTTP and networks. The list is complete, which a story holds against what a collector receives.
pub mod attribute {
    macro_rules! attributes {
        ($($constant:ident = $name:literal: $brief:literal,)*) => {
            $(#[doc = $brief] pub const $constant: &str = $name;)*

            /// Name and meaning of each.
            pub const ALL: &[(&str, &str)] = &[$(($name, $brief)),*];
        };
    }

    attributes! {
        JOB_ID = "postrider.job.id": "The job's id.",
        TENANT = "postrider.tenant": "The job's tenant.",
        LANE = "postrider.lane": "`transactional` or `bulk`.",
        SOURCE = "postrider.source": "The kind of queue it came from: `jobs`, `due` or `suspect`.",
        GENERATION = "postrider.generation": "How often the job was republished before.",
        ATTEMPT = "postrider.attempt": "The number of this try among those that count, from 1.",
        QUEUE_WAIT = "postrider.queue.wait": "Seconds in the queue, from publish or the time it was parked for.",
        PARKED = "postrider.parked": "Seconds that the job had been put away before it came back.",
        RECIPIENTS = "postrider.recipients": "How many recipients this attempt is about.",
        ROUTE = "postrider.route": "The rule that took the job.",
        TRANSPORT = "postrider.transport": "The transport by its name in the configuration.",
        TRANSPORT_KIND = "postrider.transport.kind": "`smtp`, or which provider's API.",
        CLAIM = "postrider.claim": "What the ledger said: `go`, `busy`, `settled`, `stale`, `unknown`, `decided` or `conflict`.",
        WAIT_REASON = "postrider.wait.reason": "Why the worker waited with the job in hand.",
        SMTP_COMMANDS = "postrider.smtp.commands": "The commands that a step of several sends in one round trip.",
        OUTCOME = "postrider.outcome": "How the attempt ended: `accepted`, `refused`, `unknown` or `lost_claim`.",
        CLASS = "postrider.class": "The class of a refusal.",
        ANSWER = "postrider.answer": "The transport's last answer, without addresses, at most 200 bytes.",
        SETTLEMENT = "postrider.settlement": "What followed: `done`, `again`, `split`, `hold`, `dead_letter`, `quarantine`, `return` or `give_back`.",
        PARK_UNTIL = "postrider.park.until": "The time that the job was put away until.",
        PARK_REASON = "postrider.park.reason": "What the job waits for: a limit with its rate, a turn at a transport.",
        SAMPLED_BY = "postrider.sampled_by": "Why the trace is here: `ratio` (of itself or its parent), or `failure`.",
        MESSAGING_SYSTEM = "messaging.system": "`rabbitmq`, or `postrider` for the embedded queue.",
        MESSAGING_OPERATION_NAME = "messaging.operation.name": "What was done.",
        MESSAGING_OPERATION_TYPE = "messaging.operation.type": "`process`, `send` or `settle`.",
        MESSAGING_DESTINATION = "messaging.destination.name": "The queue, or the exchange where the routing key holds a delay.",
        MESSAGING_TEMPLATE = "messaging.destination.template": "The queue with lane and shard left open.",
        MESSAGING_MESSAGE_ID = "messaging.message.id": "The message id, which is the job's.",
        MESSAGING_BODY_SIZE = "messaging.message.body.size": "Bytes of the encoded job.",
        MESSAGING_BATCH_COUNT = "messaging.batch.message_count": "How many jobs share a call.",
        DB_SYSTEM = "db.system.name": "`redis` or `sqlite`.",
        DB_OPERATION = "db.operation.name": "What was asked of the ledger.",
        HTTP_METHOD = "http.request.method": "Always `POST`.",
        HTTP_STATUS = "http.response.status_code": "The status of the answer.",
        URL_FULL = "url.full": "The address that was called; what may be a secret in it is replaced.",
        SERVER_ADDRESS = "server.address": "Host of the relay or the API.",
        SERVER_PORT = "server.port": "Port of the relay or the API.",
        PROTOCOL = "network.protocol.name": "`smtp` or `http`.",
        ERROR_TYPE = "error.type": "The class of a failure, or a status.",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::{Config, File, FileFormat};
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Shipped {
        label: BTreeMap<String, Label>,
        instrument: Vec<Entry>,
    }

    #[derive(Deserialize)]
    struct Label {
        #[serde(default)]
        values: Vec<String>,
        values_max: Option<usize>,
    }

    #[derive(Deserialize)]
    struct Entry {
        name: String,
        kind: String,
        unit: String,
        help: String,
        labels: BTreeMap<String, String>,
        #[serde(default)]
        buckets: Vec<f64>,
    }

    fn shipped() -> Shipped {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/metrics.toml");
        let file = File::from(std::path::Path::new(file)).format(FileFormat::Toml);
        Config::builder().add_source(file).build().unwrap().try_deserialize().unwrap()
    }

    #[test]
    fn the_instruments_are_those_of_the_deploy_folder() {
        let shipped = shipped().instrument;
        let names: Vec<&str> = shipped.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, INSTRUMENTS.iter().map(|one| one.name).collect::<Vec<_>>());
        for (one, ours) in shipped.iter().zip(INSTRUMENTS) {
            let kind = match ours.kind {
                InstrumentKind::Counter => "counter",
                InstrumentKind::Gauge => "gauge",
                InstrumentKind::Histogram => "histogram",
            };
            assert_eq!((one.kind.as_str(), one.unit.as_str(), one.help.as_str()), (kind, ours.unit, ours.help));
            let mut labels = ours.labels.to_vec();
            labels.sort_unstable();
            assert_eq!(one.labels.keys().map(String::as_str).collect::<Vec<_>>(), labels, "{}", one.name);
            assert_eq!(one.buckets, ours.buckets, "{}", one.name);
        }
    }

    #[test]
    fn the_words_of_labels_are_those_of_the_deploy_folder() {
        use crate::telemetry::label_values;

        let shipped = shipped().label;
        let same = |label: &str, words: &[&str]| assert_eq!(shipped[label].values, words, "label.{label}");
        same("lane", &label_values::LANES);
        same("outcome", &label_values::OUTCOMES);
        same("class", &label_values::CLASSES);
        same("source", &label_values::SOURCES);
        same("park_reason", &label_values::PARK_REASONS);
        same("bucket_scope", &label_values::BUCKET_SCOPES);
        same("policy", &label_values::POLICIES);
        same("duplicate", &label_values::DUPLICATES);
        same("dead_reason", &label_values::DEAD_REASONS);
        same("held_reason", &label_values::HELD_REASONS);
        same("circuit_state", &label_values::CIRCUIT_STATES);
        same("connection", &label_values::CONNECTIONS);
        same("pool_state", &label_values::POOL_STATES);
        same("stage", &label_values::STAGES);
        same("rest_queue", &label_values::REST_QUEUES);
        same("level", &label_values::LEVELS);
        same("reload", &label_values::RELOADS);
        for label in ["transport", "group"] {
            assert_eq!(shipped[label].values_max, Some(label_values::NAMES_MAX));
        }
    }

    #[test]
    fn attributes_are_named_once_and_explained() {
        let mut names: Vec<&str> = attribute::ALL.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), attribute::ALL.len());
        assert!(attribute::ALL.iter().all(|(_, brief)| brief.ends_with('.')));
    }
}
