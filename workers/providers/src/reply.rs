//! A provider's answer, what all of them have in common, and what one of them makes of it. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use jiff::{Timestamp, fmt::rfc2822};
use postrider_policy::{
    answers::Answers,
    outcome::{Class, Mark, Stage},
};
use serde_json::Value;

/// An answer as it came.
#[derive(Debug, Clone, Default)]
pub struct ProviderReply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, cut at the limit.
    pub body: Bytes,
    /// The body came to its end.
    pub is_whole: bool,
}

/// What an answer means for the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyVerdict {
    /// Taken. What the provider calls the message, where it says so.
    Taken(String),
    /// Certainly not taken.
    Refused {
        /// Why, in one word.
        class: Class,
        /// Why, in the provider's words.
        text: String,
        /// How long the provider asks to be left alone.
        retry_after: Option<Duration>,
        /// What the class was read from.
        basis: Basis,
    },
    /// Taken, but not for the recipients that the text names.
    TakenInPart {
        /// What the provider calls the message.
        id: String,
        /// The provider's words.
        text: String,
    },
    /// Another call with this key was made before. Taken where that was a call of ours without an answer.
    Duplicate(String),
    /// The answer does not say.
    Unclear(String),
    /// The answer does not come from the API, and nobody can say whether the API saw the call.
    NotTheApi(String),
}

/// What the class of a refusal was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// What the provider documents.
    Documented,
    /// The status alone: the table of answers may know the words.
    Status,
    /// It is about some of the recipients, who may be named.
    SomeRecipients,
}

impl ReplyVerdict {
    /// A refusal without a wish for patience.
    pub fn refused(class: Class, text: impl Into<String>) -> Self {
        Self::Refused { class, text: text.into(), retry_after: None, basis: Basis::Documented }
    }

    /// A refusal in words that the provider does not document. The call was certainly not taken, and another transport may take it.
    pub fn undocumented(text: impl Into<String>) -> Self {
        Self::Refused { class: Class::Unsupported, text: text.into(), retry_after: None, basis: Basis::Status }
    }

    /// A refusal because of some of the recipients.
    pub fn some_recipients(text: impl Into<String>) -> Self {
        Self::Refused { class: Class::Recipient, text: text.into(), retry_after: None, basis: Basis::SomeRecipients }
    }

    /// The same refusal with a wish for patience, where there is one.
    #[must_use]
    pub fn after(self, wait: Option<Duration>) -> Self {
        match self {
            Self::Refused { class, text, retry_after, basis } => {
                Self::Refused { class, text, retry_after: wait.or(retry_after), basis }
            }
            other => other,
        }
    }

    /// What a duplicate comes to: a yes where an earlier call of this job got no answer, else a refusal.
    #[must_use]
    pub fn since(self, is_repeated: bool) -> Self {
        match self {
            Self::Duplicate(text) if is_repeated => Self::Taken(text),
            Self::Duplicate(text) => Self::undocumented(text),
            other => other,
        }
    }

    /// What the table of answers makes of it: of words that the provider does not document, and of any refusal where the configuration has an entry.
    #[must_use]
    pub fn read_by(self, answers: &Answers, status: u16) -> Self {
        let Self::Refused { class, text, retry_after, basis } = self else { return self };
        // One of several messages may be refused within a yes to the call.
        let status = if (400..500).contains(&status) { status } else { 400 };
        let reading = answers.read(Stage::Call, status, None, &text);
        let (class, basis) = match (basis, class, reading.class) {
            (_, _, read) if reading.is_own => (read, Basis::Documented),
            (Basis::Status, Class::Unsupported, Class::Recipient) => (Class::Recipient, Basis::SomeRecipients),
            (Basis::Status, Class::Unsupported, Class::Unsupported) if reading.mark == Mark::Unexplained => {
                (Class::Unsupported, Basis::Status)
            }
            (Basis::Status, Class::Unsupported, read) => (read, Basis::Documented),
            // The account is refused, and the words say for what.
            (Basis::Status, Class::Config, read @ (Class::Sender | Class::Quota | Class::Throttled)) => {
                (read, Basis::Documented)
            }
            (Basis::Status, class, _) => (class, Basis::Documented),
            (basis, class, _) => (class, basis),
        };
        Self::Refused { class, text, retry_after, basis }
    }
}

impl ProviderReply {
    /// The body as JSON; nothing where it is something else.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(self.without_mark()).ok()
    }

    /// The body without a byte order mark.
    fn without_mark(&self) -> &[u8] {
        self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.body)
    }

    /// The media type of a page where one came instead of an answer: of a portal, a proxy, a login.
    pub fn page(&self) -> Option<&str> {
        let kind = self.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let is_page = kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml");
        if is_page {
            return Some(kind);
        }
        self.without_mark().trim_ascii_start().starts_with(b"<").then_some("text/html")
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    /// The first bytes of the body as text, for people.
    pub fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(400)]).into_owned()
    }

    /// `Retry-After` (RFC 9110 10.2.3), which is a number of seconds or a date.
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let value = self.header("retry-after")?;
        match value.parse::<u64>() {
            Ok(seconds) => Some(bounded(Duration::from_secs(seconds))),
            Err(_) => Some(until(rfc2822::parse(value).ok()?.timestamp(), now)),
        }
    }

    /// A header that holds seconds from now, with or without a fraction.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        Duration::try_from_secs_f64(self.header(name)?.parse().ok()?).ok().map(bounded)
    }

    /// A header that holds a Unix time in seconds, with or without a fraction.
    pub fn unix_time(&self, name: &str, now: Timestamp) -> Option<Duration> {
        let seconds: f64 = self.header(name)?.parse().ok()?;
        let at = Timestamp::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?).ok()?;
        Some(until(at, now))
    }

    /// What the status alone says, for everything that a provider does not document otherwise. 502 and 504 come from a machine in
    /// between, which does not know whether the provider took the message.
    pub fn by_status(&self, text: &str, now: Timestamp) -> ReplyVerdict {
        let refused = |class| ReplyVerdict::refused(class, text).after(self.retry_after(now));
        match self.status {
            200..=299 => match self.page() {
                Some(kind) => ReplyVerdict::NotTheApi(format!("this is not the API: {kind}")),
                None => ReplyVerdict::Unclear(format!("{}: an answer that says nothing of the message", self.status)),
            },
            // A network that wants a login; a machine in front of the API that did not reach it.
            511 | 521 | 523 | 525 | 526 | 530 => {
                ReplyVerdict::refused(Class::Config, format!("this is not the API: HTTP {}", self.status))
            }
            // A redirect is not followed: the address of the API is wrong.
            300..=399 | 401 | 402 | 403 | 404 | 405 | 407 | 410 | 426 | 451 => ReplyVerdict::Refused {
                class: Class::Config,
                text: text.to_owned(),
                retry_after: self.retry_after(now),
                basis: Basis::Status,
            },
            408 | 425 | 500 | 503 => refused(Class::Transient),
            429 => refused(Class::Throttled),
            400..=499 => ReplyVerdict::undocumented(text).after(self.retry_after(now)),
            _ => ReplyVerdict::Unclear(text.to_owned()),
        }
    }
}

/// A day at most: a wish for more is a mistake of somebody.
fn bounded(wait: Duration) -> Duration {
    wait.min(Duration::from_hours(24))
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    bounded(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
pub mod testing {
    //! Answers for the tables of the providers.

    use super::*;

    /// An answer with this status, these headers and this body.
    pub fn reply(status: u16, headers: &[(&'static str, &str)], body: &str) -> ProviderReply {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        ProviderReply { status, headers, body: Bytes::copy_from_slice(body.as_bytes()), is_whole: true }
    }

    /// The time of the tables.
    pub fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    /// `taken ID`, `class` or `class after SECONDS`, `unclear`.
    pub fn shown(verdict: &ReplyVerdict) -> String {
        match verdict {
            ReplyVerdict::Taken(id) => format!("taken {id}"),
            ReplyVerdict::Refused { class, retry_after: None, .. } => class.as_str().to_owned(),
            ReplyVerdict::Refused { class, retry_after: Some(wait), .. } => {
                format!("{} after {}", class.as_str(), wait.as_secs())
            }
            ReplyVerdict::TakenInPart { id, .. } => format!("in part {id}"),
            ReplyVerdict::Duplicate(_) => "duplicate".to_owned(),
            ReplyVerdict::Unclear(_) => "unclear".to_owned(),
            ReplyVerdict::NotTheApi(_) => "not the api".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{now, reply, shown},
        *,
    };

    #[track_caller]
    fn check_wait(value: &str, expected: Option<u64>) {
        let wait = reply(429, &[("retry-after", value)], "").retry_after(now());
        assert_eq!(wait.map(|wait| wait.as_secs()), expected, "{value}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        check_wait("30", Some(30));
        check_wait(" 30 ", Some(30));
        check_wait("Mon, 23 Nov 2026 10:02:00 GMT", Some(120));
        check_wait("Mon, 23 Nov 2026 09:00:00 GMT", Some(0));
        check_wait("99999999", Some(86_400));
        check_wait("soon", None);
        check_wait("-5", None);
        assert_eq!(reply(429, &[], "").retry_after(now()), None);
    }

    #[test]
    fn other_headers_hold_seconds_or_times() {
        let reply = reply(429, &[("x-reset", "1.5"), ("x-at", "1795428060.5"), ("x-odd", "NaN")], "");
        assert_eq!(reply.seconds("x-reset"), Some(Duration::from_millis(1500)));
        assert_eq!(reply.unix_time("x-at", now()), Some(Duration::from_millis(60_500)));
        assert_eq!(reply.seconds("x-odd"), None);
    }

    #[track_caller]
    fn check(status: u16, expected: &str) {
        assert_eq!(shown(&reply(status, &[], "<html>").by_status("text", now())), expected, "{status}");
    }

    #[test]
    fn a_status_that_nobody_documents_has_a_class() {
        check(200, "not the api");
        check(302, "config");
        check(401, "config");
        check(404, "config");
        check(400, "unsupported");
        check(413, "unsupported");
        check(415, "unsupported");
        check(422, "unsupported");
        check(429, "throttled");
        check(500, "transient");
        check(503, "transient");
        check(502, "unclear");
        check(504, "unclear");
        check(511, "config");
        check(521, "config");
        check(530, "config");
        check(599, "unclear");
    }

    #[test]
    fn an_answer_is_read_behind_a_byte_order_mark() {
        assert_eq!(reply(200, &[], "\u{feff}{\"id\":1}").json().unwrap()["id"], 1);
    }

    #[test]
    fn a_page_is_told_by_its_type_or_its_first_sign() {
        let page = |kind: &str, body: &str| reply(200, &[("content-type", kind)], body).page().map(str::to_owned);
        assert_eq!(page("text/html; charset=utf-8", "hello").as_deref(), Some("text/html"));
        assert_eq!(page("application/json", " \n<html>").as_deref(), Some("text/html"));
        assert_eq!(page("text/plain", "Mailgun Magnificent API"), None);
    }
}
