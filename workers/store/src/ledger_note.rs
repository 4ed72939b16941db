//! What the ledger keeps of a job for people: until when it waits and why, or why it ended. Nothing is decided by it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest text of an answer that is kept, in bytes: with the rest it stays below what a store keeps.
const TEXT_MAX: usize = 240;

/// A note.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerNote {
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// What it waits for, or why it ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The last answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last: String,
    /// Tries that were used up.
    #[serde(skip_serializing_if = "is_zero")]
    pub tries: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl LedgerNote {
    /// As it is kept. Long texts are cut.
    pub fn encode(&self) -> String {
        let cut = |text: &str| {
            text.chars()
                .scan(0, |bytes, c| {
                    *bytes += c.len_utf8();
                    (*bytes <= TEXT_MAX).then_some(c)
                })
                .collect::<String>()
        };
        let short = Self { why: cut(&self.why), last: cut(&self.last), ..self.clone() };
        serde_json::to_string(&short).unwrap_or_default()
    }

    /// Reads one; nothing where there is none.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The same in words; empty where nothing is known.
    pub fn words(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.until.map(|until| format!("until {until:.0}")));
        if !self.why.is_empty() {
            parts.push(format!("because of {}", self.why));
        }
        if self.tries > 0 {
            parts.push(format!(
                "{} used up",
                if self.tries == 1 { "1 try".to_owned() } else { format!("{} tries", self.tries) }
            ));
        }
        if !self.last.is_empty() {
            parts.push(format!("last answer {}", self.last));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_again_and_fits() {
        let note = LedgerNote {
            until: Some("2026-11-29T10:00:00Z".parse().unwrap()),
            why: "transport:relay (20/s)".to_owned(),
            last: "rcpt: 451 \u{e4}".repeat(100),
            tries: 2,
        };
        let text = note.encode();
        assert!(text.len() < 512, "{}", text.len());
        let read = LedgerNote::parse(&text).unwrap();
        assert_eq!((read.until, read.tries), (note.until, 2));
        assert!(read.words().starts_with(
            "until 2026-11-29T10:00:00Z, because of transport:relay (20/s), 2 tries used up, last answer rcpt: 451"
        ));
        assert_eq!(LedgerNote::parse("not one"), None);
    }
}
