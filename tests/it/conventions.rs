//! What the semantic conventions require of a span of each kind, and that nothing is told that the registry does not name. Stories call this with what
//! they received; the labels of metrics are held to the registry where the page is read.

use std::collections::BTreeSet;

use postrider_tests::rotel::{Span, attribute_names};
use postrider_workers::telemetry::registry::{INSTRUMENTS, attribute};

/// The kinds of span that the conventions know, as far as a worker makes them. Steps of an attempt that ask nobody are of no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A message is processed.
    Process,
    /// A message is sent.
    Send,
    /// A message is acknowledged.
    Settle,
    /// A call of HTTP.
    Http,
    /// The store is asked.
    Store,
    /// The time with a relay, for which there is no convention but that of clients.
    Relay,
}

impl Kind {
    fn of(span: &Span) -> Option<Self> {
        match (span.attribute(attribute::MESSAGING_OPERATION_TYPE), span.name.as_str()) {
            (Some("process"), _) => Some(Self::Process),
            (Some("send"), _) => Some(Self::Send),
            (Some("settle"), _) => Some(Self::Settle),
            (_, "POST") => Some(Self::Http),
            (_, "claim" | "submitting" | "finish") => Some(Self::Store),
            (_, "deliver") if span.kind == "client" => Some(Self::Relay),
            _ => None,
        }
    }

    fn kind(self) -> &'static str {
        if self == Self::Process { "consumer" } else { "client" }
    }

    fn required(self) -> &'static [&'static str] {
        use postrider_workers::telemetry::registry::attribute::{
            DB_OPERATION, DB_SYSTEM, HTTP_METHOD, MESSAGING_DESTINATION, MESSAGING_OPERATION_NAME,
            MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, PROTOCOL, SERVER_ADDRESS, SERVER_PORT, URL_FULL,
        };
        match self {
            Self::Process | Self::Send | Self::Settle => &[
                MESSAGING_SYSTEM,
                MESSAGING_OPERATION_NAME,
                MESSAGING_OPERATION_TYPE,
                MESSAGING_DESTINATION,
                SERVER_ADDRESS,
                SERVER_PORT,
            ],
            Self::Http => &[HTTP_METHOD, SERVER_ADDRESS, SERVER_PORT, URL_FULL],
            Self::Store => &[DB_SYSTEM, DB_OPERATION],
            Self::Relay => &[SERVER_ADDRESS, SERVER_PORT, PROTOCOL],
        }
    }
}

/// Every span has what its kind requires, and says what failed where it did. Answers with the kinds there were.
#[track_caller]
pub(crate) fn assert_conventional(spans: &[Span]) -> BTreeSet<Kind> {
    let mut kinds = BTreeSet::new();
    for span in spans {
        let names: Vec<&str> = span.attributes.iter().map(|(name, _)| name.as_str()).collect();
        let once: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), once.len(), "an attribute is there twice: {span:#?}");
        assert_eq!(span.status == "error", span.attribute(attribute::ERROR_TYPE).is_some(), "{span:#?}");
        let Some(kind) = Kind::of(span) else {
            assert_eq!(span.kind, "internal", "{span:#?}");
            continue;
        };
        kinds.insert(kind);
        assert_eq!(span.kind, kind.kind(), "{span:#?}");
        for name in kind.required() {
            assert!(span.attribute(name).is_some_and(|value| !value.is_empty()), "no {name}: {span:#?}");
        }
        if kind == Kind::Http {
            let answered = span.attribute(attribute::HTTP_STATUS).and_then(|status| status.parse::<u16>().ok());
            // Without an answer the error says what was the matter; with a bad one its type is the status.
            match answered {
                None => assert_eq!(span.status, "error", "{span:#?}"),
                Some(status @ 400..) => {
                    assert_eq!(span.attribute(attribute::ERROR_TYPE), Some(status.to_string().as_str()));
                }
                Some(_) => {}
            }
        }
    }
    kinds
}

/// Nothing was told that the registry does not know: attributes of spans, labels, and the fields of log lines. No address and no body.
#[track_caller]
pub(crate) fn assert_told_nothing_else(said: &str) {
    let labels = INSTRUMENTS.iter().flat_map(|one| one.labels.iter().copied());
    let fields = [
        "address",
        "consumers",
        "server",
        "connections",
        "answer",
        "refused",
        "attempt",
        "route",
        "transport",
        "class",
        "follows",
    ];
    let more = ["job.id", "error", "bytes", "offers", "reason", "open"];
    let known: BTreeSet<&str> =
        attribute::ALL.iter().map(|(name, _)| *name).chain(labels).chain(fields).chain(more).collect();
    let told = attribute_names(said);
    let unknown: Vec<&String> = told.iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(told.len() > 15 && unknown.is_empty(), "{unknown:?} of {told:?}");
    for secret in ["customer.example", "shop.example", "Hello."] {
        assert!(!said.contains(secret), "the collector was told {secret}");
    }
}
