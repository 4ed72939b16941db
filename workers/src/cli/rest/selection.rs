//! Which messages at rest a command is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use postrider_schemas::JobId;

use super::{
    job,
    row::{RestRow, name, tenant_of},
};
use crate::{
    cli::{ConfigArguments, output::Format},
    config::parse_duration,
    queue::{Queue, Rest, RestMessage, RestVerdict},
};

/// Which messages. All conditions must hold.
#[derive(clap::Args)]
pub struct Selection {
    /// Ids of jobs
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Select every message; needed where nothing else selects and the command changes something
    #[arg(long)]
    all: bool,
    /// Select by why it came to rest, such as retries-exhausted, conflict, unreadable, unknown
    #[arg(long)]
    reason: Option<String>,
    /// Select by tenant. Needed to change something where jobs of several tenants have the same ID
    #[arg(long)]
    tenant: Option<String>,
    /// Select by the domain of a recipient, such as example.com, or .example.com for everything below
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Select by the transport that was asked last
    #[arg(long, value_name = "NAME")]
    transport: Option<String>,
    /// At rest for at least this long, such as 12h
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older: Option<Duration>,
    /// At rest for at most this long, such as 30m
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    newer: Option<Duration>,
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Show columns in full, wider than 80 characters
    #[arg(long)]
    pub(super) wide: bool,
    /// Order of a list
    #[arg(long, value_enum, default_value = "age")]
    sort: Sort,
    #[command(flatten)]
    pub(super) config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Format,
}

/// Order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// The oldest first.
    Age,
    /// By reason.
    Reason,
    /// By tenant.
    Tenant,
}

/// Which messages are to run again, and how fast.
#[derive(clap::Args)]
pub struct RetryArguments {
    #[command(flatten)]
    pub(super) selection: Selection,
    /// At most this many a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
}

impl Selection {
    /// Whether jobs are named by their ids.
    pub(super) fn names_jobs(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Where a row stands in a list.
    pub(super) fn order(&self, row: &RestRow) -> (String, Option<Timestamp>) {
        let word = match self.sort {
            Sort::Age => String::new(),
            Sort::Reason => row.reason.clone(),
            Sort::Tenant => row.tenant.clone().unwrap_or_default(),
        };
        (word, row.at)
    }

    pub(super) fn must_select(&self) -> anyhow::Result<()> {
        let selects = self.all
            || self.names_jobs()
            || [&self.reason, &self.tenant, &self.domain, &self.transport].into_iter().any(Option::is_some)
            || self.older.is_some()
            || self.newer.is_some();
        anyhow::ensure!(
            selects,
            "name jobs by id, --reason, --tenant, --domain, --transport, --older or --newer, or say --all; \
             --dry-run shows how many it would be"
        );
        Ok(())
    }

    /// Jobs of several tenants may have the same id: nothing is changed before it is clear whose is meant.
    pub(super) async fn must_mean_one_tenant(&self, queue: &Queue, rest: Rest) -> anyhow::Result<()> {
        if self.ids.is_empty() || self.tenant.is_some() {
            return Ok(());
        }
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        queue
            .rest_each(rest, async |message| {
                if self.is_named(message) {
                    let tenant = tenant_of(message).unwrap_or_else(|| "(none that can be read)".to_owned());
                    found.entry(name(message).to_owned()).or_default().insert(tenant);
                }
                RestVerdict::Keep
            })
            .await?;
        for (id, tenants) in found {
            let names: Vec<String> = tenants.into_iter().collect();
            anyhow::ensure!(
                names.len() == 1,
                "{id} is a job of the tenants {}: name one by --tenant",
                names.join(", ")
            );
        }
        Ok(())
    }

    fn is_named(&self, message: &RestMessage) -> bool {
        self.ids.is_empty() || self.ids.iter().any(|id| id.parse::<JobId>().is_ok_and(|id| named(message, id)))
    }

    pub(super) fn holds(&self, message: &RestMessage, now: Timestamp) -> bool {
        let rest = message.meta.rest.as_ref();
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        let transport = || rest.and_then(|rest| rest.transport.as_deref());
        self.is_named(message)
            && self.reason.as_ref().is_none_or(|reason| rest.is_some_and(|rest| rest.reason == *reason))
            && self.older.is_none_or(|limit| rest.is_some_and(|rest| age(rest.at) >= limit))
            && self.newer.is_none_or(|limit| rest.is_some_and(|rest| age(rest.at) <= limit))
            && self.tenant.as_ref().is_none_or(|tenant| tenant_of(message).as_ref() == Some(tenant))
            && self.transport.as_ref().is_none_or(|name| transport() == Some(name))
            && self.domain.as_ref().is_none_or(|domain| is_for(message, domain))
    }
}

/// Whether a recipient of the job is at a domain, or below one that begins with a dot.
fn is_for(message: &RestMessage, domain: &str) -> bool {
    let domain = domain.to_ascii_lowercase();
    let at = |of: &str| if domain.starts_with('.') { of.ends_with(&domain) } else { of == domain };
    job(message).is_ok_and(|job| {
        job.recipients().iter().any(|one| {
            let address = one.address.to_string().to_ascii_lowercase();
            address.rsplit_once('@').is_some_and(|(_, of)| at(of))
        })
    })
}

fn named(message: &RestMessage, id: JobId) -> bool {
    message.message_id.as_deref().is_some_and(|text| text.parse() == Ok(id))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use postrider_schemas::{Meta, examples, meta::Rest as Reason};

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        selection: Selection,
    }

    #[track_caller]
    fn check(arguments: &[&str], expected: bool) {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let rest = Reason {
            reason: "retries-exhausted".to_owned(),
            detail: String::new(),
            at: "2026-11-23T10:00:00Z".parse().unwrap(),
            times: 1,
            lane: None,
            transport: Some("relay".to_owned()),
        };
        let message = RestMessage {
            body: examples::ALL[0].1.as_bytes().into(),
            message_id: None,
            meta: Meta { rest: Some(rest), ..Meta::default() },
            cut: None,
            routing_key: String::new(),
        };
        let line = Line::try_parse_from([&["rest"], arguments].concat()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(line.selection.holds(&message, now), expected, "{arguments:?}");
    }

    #[test]
    fn all_conditions_must_hold() {
        let domain = "customer.example";
        assert!(examples::ALL[0].1.contains(domain));
        for (arguments, expected) in [
            (&[][..], true),
            (&["--reason", "retries-exhausted", "--older", "1h", "--newer", "3h"], true),
            (&["--older", "3h"], false),
            (&["--newer", "1h"], false),
            (&["--transport", "relay", "--domain", domain], true),
            (&["--domain", "Customer.Example"], true),
            (&["--domain", ".example"], true),
            (&["--domain", "omer.example"], false),
            (&["--transport", "other"], false),
            (&["0190a5c0-7a10-7c3e-9d51-00000000ffff"], false),
        ] {
            check(arguments, expected);
        }
    }

    #[test]
    fn nothing_is_changed_by_a_slip() {
        let selects = |arguments: &[&str]| {
            Line::try_parse_from([&["rest"], arguments].concat()).is_ok_and(|line| line.selection.must_select().is_ok())
        };
        assert!(!selects(&[]) && !selects(&["--dry-run"]) && !selects(&["--wide"]));
        assert!(selects(&["--all"]) && selects(&["--domain", "a.example"]) && selects(&["--newer", "1h"]));
    }
}
