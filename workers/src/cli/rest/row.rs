//! What is told of a message at rest.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Tenant, wire::decode_v1};
use serde::Serialize;

use crate::{
    cli::output::{self, Format, span},
    queue::{Rest, RestMessage},
};

/// One message.
#[derive(Serialize)]
pub(super) struct RestRow {
    pub(super) id: String,
    pub(super) reason: String,
    pub(super) detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transport: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) routing_key: String,
    pub(super) at: Option<Timestamp>,
    pub(super) attempts: u32,
    pub(super) times: u32,
    pub(super) bytes: usize,
}

impl RestRow {
    pub(super) fn of(place: Rest, message: &RestMessage) -> Self {
        let (rest, cut) = (message.meta.rest.as_ref(), message.cut.as_ref());
        let reason = match (rest, cut, place) {
            (Some(rest), ..) => rest.reason.as_str(),
            (None, Some(_), _) => "unreadable",
            (None, None, Rest::Unroutable) => "unroutable",
            (None, None, _) => "delivery-limit",
        };
        let routing_key = if place == Rest::Unroutable { message.routing_key.clone() } else { String::new() };
        let detail = match (rest, cut) {
            (Some(rest), _) => rest.detail.clone(),
            (None, Some(cut)) => cut.reason.clone(),
            (None, None) if place == Rest::Unroutable => format!("no queue takes the routing key {routing_key:?}"),
            (None, None) => String::new(),
        };
        Self {
            id: name(message).to_owned(),
            reason: reason.to_owned(),
            detail,
            tenant: tenant_of(message),
            transport: rest.and_then(|rest| rest.transport.clone()),
            routing_key,
            at: rest.map(|rest| rest.at),
            attempts: message.meta.attempt,
            times: rest.map_or(1, |rest| rest.times),
            bytes: message.body.len(),
        }
    }
}

/// The columns of a list.
pub(super) const HEADER: [&str; 7] = ["id", "age", "reason", "detail", "tenant", "transport", "tries"];

/// So many of them fit 80 characters; the last of these is cut.
pub(super) const NARROW: usize = 4;

/// The rows of a list, with the first columns.
pub(super) fn cells(rows: &[RestRow], now: Timestamp, columns: usize) -> Vec<Vec<String>> {
    let age = |at: Timestamp| span(Duration::try_from(now.duration_since(at)).unwrap_or_default().as_secs());
    let again = |times: u32| if times > 1 { format!("(for the {} time) ", ordinal(times)) } else { String::new() };
    let row = |row: &RestRow| {
        vec![
            row.id.clone(),
            row.at.map_or_else(|| "-".to_owned(), age),
            row.reason.clone(),
            format!("{}{}", again(row.times), row.detail),
            row.tenant.clone().unwrap_or_else(|| "-".to_owned()),
            row.transport.clone().unwrap_or_else(|| "-".to_owned()),
            row.attempts.to_string(),
        ]
    };
    let cut = |mut cells: Vec<String>| {
        cells.truncate(columns);
        cells
    };
    rows.iter().map(row).map(cut).collect()
}

/// What can be done about what is listed.
pub(super) fn next_commands(place: Rest, count: usize) -> &'static str {
    match place {
        _ if count == 0 => "",
        Rest::Dead => "; show ID, retry ID or drop ID",
        Rest::Hold => "; show ID, resend ID (it did not arrive) or drop ID (it did)",
        Rest::Unroutable => "; move ID or drop ID",
    }
}

/// Shows a message by itself: as JSON, or whole.
pub(super) fn show(row: &RestRow, message: &RestMessage, format: Format, whole: bool) -> anyhow::Result<()> {
    if format == Format::Json {
        let mut value = serde_json::to_value(row)?;
        if whole {
            value["headers"] = serde_json::to_value(message.meta.to_pairs())?;
            value["body"] = String::from_utf8_lossy(&message.body).into();
        }
        return output::json(&value);
    }
    if !whole {
        return Ok(());
    }
    let at = row.at.map_or("-".to_owned(), |at| at.to_string());
    output::line(&format!("{}  {}  {at}  tries {}  {}", row.id, row.reason, row.attempts, row.detail))?;
    for (name, value) in message.meta.to_pairs() {
        output::line(&format!("  {name}: {value}"))?;
    }
    Ok(output::json_text(&String::from_utf8_lossy(&message.body))?)
}

fn ordinal(n: u32) -> String {
    match n {
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        n => format!("{n}th"),
    }
}

/// What people know a message by.
pub(super) fn name(message: &RestMessage) -> &str {
    message.message_id.as_deref().unwrap_or("(no id)")
}

/// Whose job a message is. Nothing where the body, or what stands in the field, is none: it may hold anything then.
pub(in crate::cli) fn tenant_of(message: &RestMessage) -> Option<String> {
    let document = decode_v1(&message.body).ok()?;
    let tenant = document.tenant.unwrap_or_else(|| Tenant::DEFAULT.to_owned());
    Tenant::parse(&tenant).ok().map(|tenant| tenant.as_str().to_owned())
}
