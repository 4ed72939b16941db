//! From a message and its envelope to a job. Pure.
//!
//! The envelope decides who gets it, the headers do not. Headers that speak to us, or to the service whose place we take, are read and do not leave;
//! all other octets stay as they are.

use std::{collections::BTreeMap, ops::Range};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use postrider_schemas::{JobV1, Lane, MailboxV1, raw::CONTROL_PREFIX, wire::EnvelopeV1};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::session::Envelope;
use crate::{
    idempotency::hex,
    problem::{Kind, Problem},
};

/// More of these, and the message goes in circles.
const RECEIVED_MAX: usize = 50;

/// A message, read.
pub struct Drafted {
    /// The job.
    pub job: JobV1,
    /// The idempotency key that a header names, or that was derived.
    pub key: Option<String>,
}

/// A header field.
struct Field<'a> {
    name: String,
    value: &'a [u8],
    range: Range<usize>,
}

/// What the control headers of a message say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Control {
    key: Option<String>,
    tags: Vec<String>,
    metadata: BTreeMap<String, String>,
    lane: Option<Lane>,
    send_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

/// Makes a job. With `derive_key` a message without a key gets one from its `Message-ID` and recipients.
pub fn draft(message: &[u8], envelope: &Envelope, derive_key: bool) -> Result<Drafted, Problem> {
    let fields = fields(message);
    if fields.iter().filter(|field| field.name == "received").count() > RECEIVED_MAX {
        return Err(Problem::new(Kind::Invalid, "The message went through more than 50 servers: it goes in circles."));
    }
    let mut control = Control::default();
    let mut kept = Vec::with_capacity(message.len());
    let mut at = 0;
    for field in &fields {
        if control.read(field)? && !field.name.starts_with(CONTROL_PREFIX) {
            kept.extend_from_slice(&message[at..field.range.start]);
            at = field.range.end;
        }
    }
    kept.extend_from_slice(&message[at..]);
    let key = control.key.or_else(|| derive_key.then(|| derived_key(&fields, &envelope.to)).flatten());
    let job = JobV1 {
        lane: control.lane.unwrap_or_default(),
        mime: Some(STANDARD.encode(kept)),
        envelope: Some(EnvelopeV1 {
            from: Some(envelope.from.clone()),
            to: envelope.to.iter().map(|one| MailboxV1::from(one.as_str())).collect(),
        }),
        tags: control.tags,
        metadata: control.metadata,
        send_at: control.send_at,
        expires_at: control.expires_at,
        ..JobV1::default()
    };
    Ok(Drafted { job, key })
}

/// The same message to the same recipients has the same key; nothing without a `Message-ID`.
fn derived_key(fields: &[Field<'_>], recipients: &[String]) -> Option<String> {
    let id = fields.iter().find(|field| field.name == "message-id").map(|field| text(field.value))?;
    if id.is_empty() {
        return None;
    }
    let mut recipients: Vec<String> = recipients.iter().map(|one| one.to_lowercase()).collect();
    recipients.sort_unstable();
    recipients.dedup();
    let mut hasher = Sha256::new();
    hasher.update(id);
    for one in recipients {
        hasher.update([0]);
        hasher.update(one);
    }
    Some(format!("smtp:{}", hex(&hasher.finalize()[..16])))
}

/// The header of a message whose lines end in CRLF. Where a line is no field, it ends; the job is refused for that later.
fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let mut fields: Vec<Field<'_>> = Vec::new();
    let mut start = 0;
    while start < message.len() {
        let end = memchr::memchr(b'\n', &message[start..]).map_or(message.len(), |at| start + at + 1);
        let line = &message[start..end];
        if matches!(line[0], b' ' | b'\t') {
            let Some(last) = fields.last_mut() else { break };
            let value_start = last.range.end - last.value.len();
            last.range.end = end;
            last.value = &message[value_start..end];
        } else {
            let Some(colon) = memchr::memchr(b':', line) else { break };
            let name = String::from_utf8_lossy(line[..colon].trim_ascii_end()).to_ascii_lowercase();
            fields.push(Field { name, value: &line[colon + 1..], range: start..end });
        }
        start = end;
    }
    fields
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).replace(['\r', '\n'], "").trim().to_owned()
}

impl Control {
    /// Reads a header. False: it is not for us.
    fn read(&mut self, field: &Field<'_>) -> Result<bool, Problem> {
        let value = text(field.value);
        let wrong = |rule: &str| Problem::new(Kind::Invalid, format!("The header {} {rule}.", field.name));
        match field.name.as_str() {
            "x-postrider-idempotency-key" | "idempotency-key" | "x-idempotency-key" | "resend-idempotency-key" => {
                let value =
                    value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(&value).to_owned();
                if self.key.as_ref().is_some_and(|key| *key != value) {
                    return Err(wrong("names another key than a header above it"));
                }
                self.key = Some(value);
            }
            "x-postrider-tag" | "x-pm-tag" | "x-mailgun-tag" => self.tags.push(value),
            "x-postrider-lane" => self.lane = Some(value.parse().map_err(|_| wrong("is `transactional` or `bulk`"))?),
            "x-postrider-send-at" => self.send_at = Some(time(&value).ok_or_else(|| wrong(TIME))?),
            "x-postrider-expires-at" => self.expires_at = Some(time(&value).ok_or_else(|| wrong(TIME))?),
            "x-pm-message-stream" => {
                if value == "broadcast" {
                    self.lane = Some(Lane::Bulk);
                } else if value != "outbound" {
                    self.metadata.insert("message-stream".to_owned(), value);
                }
            }
            "x-ses-configuration-set" => drop(self.metadata.insert("configuration-set".to_owned(), value)),
            "x-ses-message-tags" => {
                for pair in value.split(',') {
                    let (name, value) = pair.split_once('=').ok_or_else(|| wrong("is a list such as `a=1, b=2`"))?;
                    self.metadata.insert(name.trim().to_owned(), value.trim().to_owned());
                }
            }
            "x-mailgun-variables" => self.metadata.extend(object(&value).ok_or_else(|| wrong("is a JSON object"))?),
            "x-smtpapi" => self.json(&value, &["category", "unique_args", "send_at"]).map_err(|rule| wrong(&rule))?,
            "x-msys-api" => self.json(&value, &["tags", "metadata", "campaign_id"]).map_err(|rule| wrong(&rule))?,
            name => {
                let key = name.strip_prefix("x-postrider-metadata-").or_else(|| name.strip_prefix("x-pm-metadata-"));
                match key {
                    Some(key) => drop(self.metadata.insert(key.to_owned(), value)),
                    None if name.starts_with(CONTROL_PREFIX) => return Err(wrong("is not known")),
                    None => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// What the headers of SendGrid and `SparkPost` say. A field without a counterpart refuses the message.
    fn json(&mut self, text: &str, known: &[&str]) -> Result<(), String> {
        let map: Map<String, Value> = serde_json::from_str(text).map_err(|_| "is a JSON object".to_owned())?;
        for (name, value) in map {
            if !known.contains(&name.as_str()) {
                // Names that are too strange for a reply are not repeated.
                let is_name = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                let shown = if is_name { format!("`{name}`") } else { "a field".to_owned() };
                return Err(format!("holds {shown}, which has no counterpart here"));
            }
            let is_read = match name.as_str() {
                "send_at" => {
                    self.send_at = value.as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
                    self.send_at.is_some()
                }
                "unique_args" | "metadata" => object(&value.to_string()).map(|map| self.metadata.extend(map)).is_some(),
                // Categories, tags and the campaign.
                _ => texts(&value).map(|tags| self.tags.extend(tags)).is_some(),
            };
            if !is_read {
                return Err(format!("holds `{name}` in another form than expected"));
            }
        }
        Ok(())
    }
}

const TIME: &str = "is a time such as 2026-12-01T10:00:00Z";

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// One text, or a list of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        one => Some(vec![one.as_str()?.to_owned()]),
    }
}

fn object(text: &str) -> Option<BTreeMap<String, String>> {
    let map: Map<String, Value> = serde_json::from_str(text).ok()?;
    let shown = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Some(map.into_iter().map(|(name, value)| (name, shown(value))).collect())
}

#[cfg(test)]
mod tests {
    use postrider_schemas::JobLimits;
    use proptest::prelude::*;

    use super::*;

    fn envelope() -> Envelope {
        Envelope { from: "bounce@shop.example".to_owned(), to: vec!["c@d.example".to_owned()] }
    }

    fn read(message: &str) -> Result<(JobV1, String, Option<String>), Problem> {
        let Drafted { job, key } = draft(message.as_bytes(), &envelope(), false)?;
        let mime = STANDARD.decode(job.mime.as_ref().unwrap()).unwrap();
        Ok((job, String::from_utf8(mime).unwrap(), key))
    }

    #[test]
    fn a_message_stays_as_it_is_but_for_control_headers() {
        let message = "Message-ID: <1@shop.example>\r\nFrom: a@shop.example\r\nX-Postrider-Tag: receipt\r\n\
                       X-PM-Metadata-Order: 47\r\n 11\r\nX-Postrider-Lane: bulk\r\nTo: somebody@else.example\r\n\
                       Resend-Idempotency-Key: order:1\r\n\r\nX-PM-Tag: body\r\n.\r\n";
        let (job, mime, key) = read(message).unwrap();
        let left = message.replace("X-PM-Metadata-Order: 47\r\n 11\r\n", "");
        assert_eq!(mime, left.replace("Resend-Idempotency-Key: order:1\r\n", ""));
        assert_eq!((key.as_deref(), job.lane, job.tags.join(" ").as_str()), (Some("order:1"), Lane::Bulk, "receipt"));
        assert_eq!(job.metadata.clone().into_iter().collect::<Vec<_>>(), [("order".to_owned(), "47 11".to_owned())]);
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(job.sender().map(ToString::to_string).as_deref(), Some("bounce@shop.example"));
        let delivered = String::from_utf8(job.raw().unwrap().delivered().into_owned()).unwrap();
        let head = "Message-ID: <1@shop.example>\r\nFrom: a@shop.example\r\nTo: somebody@else.example\r\n\r\n";
        assert_eq!(delivered, format!("{head}X-PM-Tag: body\r\n.\r\n"));
    }

    #[test]
    fn control_headers_of_services_are_understood_or_refused() {
        let with = |header: &str| read(&format!("From: a@shop.example\r\n{header}\r\n\r\nt\r\n"));
        let (job, ..) = with("X-SMTPAPI: {\"category\": [\"a\", \"b\"],\r\n \"unique_args\": {\"n\": 1}}").unwrap();
        assert_eq!((job.tags.len(), job.metadata["n"].as_str()), (2, "1"));
        let (job, ..) = with("X-SES-MESSAGE-TAGS: a=1, b=2").unwrap();
        assert_eq!(job.metadata.len(), 2);
        let (job, ..) = with("X-MSYS-API: {\"campaign_id\": \"c\", \"metadata\": {\"a\": \"b\"}}").unwrap();
        assert_eq!((job.tags.join(" ").as_str(), job.metadata.len()), ("c", 1));
        let (job, mime, _) = with("X-PM-Message-Stream: broadcast").unwrap();
        assert_eq!((job.lane, mime.contains("X-PM")), (Lane::Bulk, false));
        let (_, mime, _) = with("X-SES-Outgoing: 2026.12.01").unwrap();
        assert!(mime.contains("X-SES-Outgoing"), "what speaks to nobody stays");
        for header in [
            "X-SMTPAPI: {\"filters\": {}}",
            "X-SMTPAPI: {\"send_at\": \"soon\"}",
            "X-Mailgun-Variables: x",
            "X-SES-MESSAGE-TAGS: a",
            "X-Postrider-Lane: fast",
            "X-Postrider-Send-At: soon",
            "X-Postrider-Colour: red",
            "Idempotency-Key: a\r\nX-Idempotency-Key: b",
        ] {
            assert_eq!(with(header).err().map(|problem| problem.kind), Some(Kind::Invalid), "{header}");
        }
    }

    #[test]
    fn a_key_is_derived_from_message_id_and_recipients() {
        let key = |message: &str, to: &[&str], derive| {
            let envelope = Envelope { from: String::new(), to: to.iter().map(|one| (*one).to_owned()).collect() };
            draft(message.as_bytes(), &envelope, derive).unwrap().key
        };
        let message = "From: a@b.example\r\nMessage-ID: <1@b.example>\r\n\r\nt\r\n";
        let first = key(message, &["c@d.example", "E@d.example"], true);
        assert_eq!(first.as_deref().map(str::len), Some(5 + 32));
        assert_eq!(first, key(&message.replace("\r\nt", "\r\nother"), &["e@d.example", "c@d.example"], true));
        assert_ne!(first, key(message, &["c@d.example"], true), "a message to others is another one");
        assert_ne!(first, key(&message.replace("<1@", "<2@"), &["c@d.example", "e@d.example"], true));
        let named = message.replace("\r\n\r\n", "\r\nIdempotency-Key: \"k\"\r\n\r\n");
        assert_eq!(key(&named, &["c@d.example"], true).as_deref(), Some("k"));
        assert_eq!(key("From: a@b.example\r\n\r\n", &["c@d.example"], true), None);
        assert_eq!(key(message, &["c@d.example"], false), None);
    }

    #[test]
    fn what_goes_in_circles_is_refused() {
        let circle = |times| "Received: by x\r\n".repeat(times) + "From: a@b.example\r\n\r\n";
        assert!(read(&circle(50)).is_ok() && read(&circle(51)).is_err());
    }

    proptest! {
        #[test]
        fn every_octet_that_is_no_control_header_is_kept(message in "([A-Za-z :.\\-]{0,12}\r\n){0,8}") {
            if let Ok(drafted) = draft(message.as_bytes(), &envelope(), true) {
                let mime = STANDARD.decode(drafted.job.mime.unwrap()).unwrap();
                prop_assert_eq!(String::from_utf8(mime).unwrap(), message);
            }
        }

        #[test]
        fn no_message_is_too_strange(message in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = draft(&message, &envelope(), true);
        }
    }
}
