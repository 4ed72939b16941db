//! Whole messages (RFC 5322) as vendors' clients hand them over: with recipients of their own, or with those of their headers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use postrider_schemas::{
    JobV1, Mailbox, MailboxV1,
    raw::{EnvelopeSender, RawMessage},
    wire::EnvelopeV1,
};

use crate::problem::{Kind, Problem};

/// The job of a message in base64. Without recipients it goes to those of `To`, `Cc` and `Bcc`; without a sender, bounces go to its author.
pub fn job(mime: String, sender: Option<&str>, mut to: Vec<MailboxV1>) -> Result<JobV1, Problem> {
    let rejected = |detail: String| Problem::new(Kind::Invalid, format!("The message {detail}."));
    if to.is_empty() {
        let octets = STANDARD.decode(mime.as_bytes()).map_err(|_| rejected("is not in base64".to_owned()))?;
        let message = RawMessage::parse(Bytes::from(octets), EnvelopeSender::Author)
            .map_err(|error| rejected(error.to_string()))?;
        for name in ["To", "Cc", "Bcc"] {
            to.extend(message.header(name).filter(|list| !list.is_empty()).map(MailboxV1::from));
        }
        if to.is_empty() {
            return Err(rejected("names no recipient".to_owned()));
        }
    }
    // Clients ask so whether the way is open, and expect a refusal: nothing is to be sent.
    let is_nowhere = |one: &MailboxV1| matches!(one, MailboxV1::Text(text) if is_invalid(text));
    if sender.is_some_and(is_invalid) || to.iter().any(is_nowhere) {
        return Err(rejected("is from or to a domain that reaches nobody (RFC 6761)".to_owned()));
    }
    // Senders may come with a name, which an envelope does not have.
    let address = |text: &str| match Mailbox::parse(text) {
        Ok(mailbox) => mailbox.address().to_string(),
        Err(_) => text.to_owned(),
    };
    let envelope = EnvelopeV1 { from: sender.map(address), to };
    Ok(JobV1 { mime: Some(mime), envelope: Some(envelope), ..JobV1::default() })
}

/// Whether an address is below `.invalid`.
fn is_invalid(address: &str) -> bool {
    let domain = address.trim_end_matches('>').rsplit('@').next().unwrap_or_default();
    domain.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("invalid"))
}
