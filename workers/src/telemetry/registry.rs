//! Every name that telemetry speaks: instruments with their labels, and the attributes of spans. `deploy/metrics.toml` says the same of the
//! instruments to dashboards and alerts; a test holds the two equal. What is not named here is not told.

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

/// Instruments by what they tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table below says what each of them tells")]
pub enum Name {
    Attempts,
    Outcomes,
    AttemptDuration,
    PublishToAcceptedDuration,
    TransportConfigRefusals,
    TransportSystemicRefusals,
    Unknowns,
    QueueWaitDuration,
    LaneDepth,
    BacklogDeliverable,
    OldestAge,
    OldestUntriedAge,
    InFlight,
    RestDepth,
    LadderDepth,
    LadderLateness,
    Parked,
    Dead,
    Held,
    DuplicatesSuppressed,
    BucketUse,
    CircuitState,
    PoolConnections,
    PoolConnectionsLimit,
    CertificateExpiryTimestamp,
    BrokerBlocked,
    StoreDegraded,
    StoreReplayPending,
    MemoryHeld,
    MemoryBudget,
    ConfigReloads,
    EventsDropped,
}

impl Name {
    /// The instrument.
    pub fn instrument(self) -> &'static Instrument {
        &INSTRUMENTS[self as usize]
    }
}

/// All instruments, in the order of [`Name`].
pub const INSTRUMENTS: &[Instrument] = &[
    Instrument {
        name: "postrider.attempts",
        kind: InstrumentKind::Counter,
        unit: "{attempt}",
        help: "Attempts begun: a transport was about to be asked to take a message",
        labels: &["lane", "transport", "group"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.outcomes",
        kind: InstrumentKind::Counter,
        unit: "{attempt}",
        help: "Attempts ended, by how; class is none unless a transport refused",
        labels: &["lane", "transport", "group", "outcome", "class"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.attempt.duration",
        kind: InstrumentKind::Histogram,
        unit: "s",
        help: "Time with the transport, from asking for a connection to its last answer",
        labels: &["transport", "outcome"],
        buckets: &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0],
    },
    Instrument {
        name: "postrider.publish_to_accepted.duration",
        kind: InstrumentKind::Histogram,
        unit: "s",
        help: "From publish, or send_at where that is later, to the transport's acceptance",
        labels: &["lane", "transport"],
        buckets: &[
            0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0,
            86400.0,
        ],
    },
    Instrument {
        name: "postrider.transport.config_refusals",
        kind: InstrumentKind::Counter,
        unit: "{attempt}",
        help: "Attempts that ended because the transport needs a person: credentials, certificate, a missing extension",
        labels: &["transport", "stage"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.transport.systemic_refusals",
        kind: InstrumentKind::Counter,
        unit: "{pause}",
        help: "Times that a transport was paused because it refused several recipients alike and accepted nobody in between",
        labels: &["transport"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.unknowns",
        kind: InstrumentKind::Counter,
        unit: "{attempt}",
        help: "Attempts whose message was handed over and whose answer was never seen, by what the route does then",
        labels: &["lane", "transport", "policy"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.queue.wait.duration",
        kind: InstrumentKind::Histogram,
        unit: "s",
        help: "Time in a queue: from publish, or the time the job was parked for, until a worker takes it in hand",
        labels: &["lane", "source"],
        buckets: &[0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0],
    },
    Instrument {
        name: "postrider.lane.depth",
        kind: InstrumentKind::Gauge,
        unit: "{job}",
        help: "Jobs that wait in the work queues of a lane, all shards together; the suspect queue counts in rest.depth",
        labels: &["lane", "source"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.backlog.deliverable",
        kind: InstrumentKind::Gauge,
        unit: "{job}",
        help: "Jobs that more workers would send sooner: queued, less what limits and circuits hold back",
        labels: &["lane"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.oldest.age",
        kind: InstrumentKind::Gauge,
        unit: "s",
        help: "Age of the oldest unfinished job, in a queue, in hand or deferred: since publish, or send_at where that is later; 0 while there is none",
        labels: &["lane"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.oldest.untried.age",
        kind: InstrumentKind::Gauge,
        unit: "s",
        help: "The same of jobs that no transport refused so far: those whose next try does not wait on purpose",
        labels: &["lane"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.in_flight",
        kind: InstrumentKind::Gauge,
        unit: "{job}",
        help: "Jobs in the hands of this worker",
        labels: &["lane"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.rest.depth",
        kind: InstrumentKind::Gauge,
        unit: "{message}",
        help: "Messages at rest: given up, held for a person, in quarantine, wanted by no queue, events that those who listen did not take yet",
        labels: &["queue"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.ladder.depth",
        kind: InstrumentKind::Gauge,
        unit: "{job}",
        help: "Parked jobs on a level of the delay ladder, its seven queues together",
        labels: &["level"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.ladder.lateness",
        kind: InstrumentKind::Histogram,
        unit: "s",
        help: "How much later than asked a parked job came off the ladder into a worker's hands",
        labels: &["lane"],
        buckets: &[0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0],
    },
    Instrument {
        name: "postrider.parked",
        kind: InstrumentKind::Counter,
        unit: "{job}",
        help: "Jobs kept until later, by reason",
        labels: &["lane", "reason"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.dead",
        kind: InstrumentKind::Counter,
        unit: "{job}",
        help: "Jobs given up and kept",
        labels: &["lane", "reason"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.held",
        kind: InstrumentKind::Counter,
        unit: "{job}",
        help: "Jobs kept until a person decides",
        labels: &["lane", "reason"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.duplicates.suppressed",
        kind: InstrumentKind::Counter,
        unit: "{message}",
        help: "Messages that came again and were dropped: their job had ended, or a newer copy exists",
        labels: &["lane", "reason"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.bucket.use",
        kind: InstrumentKind::Gauge,
        unit: "1",
        help: "Share of a limit's present rate that is used; of tenants and sender domains only the fullest bucket is told",
        labels: &["scope", "transport", "group"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.circuit.state",
        kind: InstrumentKind::Gauge,
        unit: "{circuit}",
        help: "1 for the state that a transport's circuit is in, 0 for the others",
        labels: &["transport", "state"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.pool.connections",
        kind: InstrumentKind::Gauge,
        unit: "{connection}",
        help: "Open connections of this worker to a transport",
        labels: &["transport", "state"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.pool.connections.limit",
        kind: InstrumentKind::Gauge,
        unit: "{connection}",
        help: "Connections to a transport that this worker may open",
        labels: &["transport"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.certificate.expiry.timestamp",
        kind: InstrumentKind::Gauge,
        unit: "s",
        help: "When the certificate that a transport showed last ends, in Unix time",
        labels: &["transport"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.broker.blocked",
        kind: InstrumentKind::Gauge,
        unit: "{connection}",
        help: "1 while the broker takes nothing on this connection (an alarm: memory or disk), or it is down",
        labels: &["connection"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.store.degraded",
        kind: InstrumentKind::Gauge,
        unit: "{store}",
        help: "1 while the store does not answer: bulk waits, transactional mail goes on without a claim",
        labels: &[],
        buckets: &[],
    },
    Instrument {
        name: "postrider.store.replay.pending",
        kind: InstrumentKind::Gauge,
        unit: "{job}",
        help: "Successes that the store has yet to hear of",
        labels: &[],
        buckets: &[],
    },
    Instrument {
        name: "postrider.memory.held",
        kind: InstrumentKind::Gauge,
        unit: "By",
        help: "Memory that the messages in hand are counted with: those that wait, and the shares of those that are worked on",
        labels: &[],
        buckets: &[],
    },
    Instrument {
        name: "postrider.memory.budget",
        kind: InstrumentKind::Gauge,
        unit: "By",
        help: "Memory that messages in hand may take, five eighths of the worker's limit",
        labels: &[],
        buckets: &[],
    },
    Instrument {
        name: "postrider.config.reloads",
        kind: InstrumentKind::Counter,
        unit: "{reload}",
        help: "Changed configurations, applied or refused",
        labels: &["result"],
        buckets: &[],
    },
    Instrument {
        name: "postrider.events.dropped",
        kind: InstrumentKind::Counter,
        unit: "{event}",
        help: "Events that were lost because the queue of waiting events was full, or because no job could wait for them",
        labels: &[],
        buckets: &[],
    },
];

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
