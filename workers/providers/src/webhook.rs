//! The message as JSON to an address of one's own, signed as Standard Webhooks are: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.
//!
//! The id is the same whenever the same recipients of the same job are meant, so that a receiver can tell a repetition. Any 2xx but a
//! page says that the receiver took the message over.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use postrider_policy::capabilities::Capabilities;
use postrider_schemas::{address::Mailbox, job::RecipientField};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::{
    description::{Api, Call, Description, Notes, Setting, account},
    encoding::base64,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    sigv4::hmac_sha256,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "webhook",
    name: "Signed webhook",
    base_url: None,
    settings: &[Setting::secret("secret", "The signing secret: `whsec_` and base64, or any text.")],
    capabilities: Capabilities { raw: true, ..Capabilities::ALL },
    batching: None,
    notes: Notes::USUAL,
};

account! {
    /// An address of one's own.
    pub struct Webhook {
        /// The signing secret, `whsec_` and base64, or any text.
        secret: secret,
    }
}

impl Api for Webhook {
    fn request(&self, message: &Message<'_>, call: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.secret, message, call.now)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }
}

/// The kind and version of the document.
const TYPE: &str = "postrider.message.v1";

/// One message.
pub fn request(secret: &SecretString, outgoing: &Message<'_>, now: Timestamp) -> Result<Request, Unsupported> {
    let mut request = Request::json("", Vec::new(), &document(outgoing, now));
    let (id, at) = (outgoing.key().to_string(), now.as_second().to_string());
    let mut signed = format!("{id}.{at}.").into_bytes();
    signed.extend_from_slice(&request.body);
    let signature = format!("v1,{}", base64(&hmac_sha256(&key(secret), &signed)));
    request.headers =
        vec![("webhook-id", id.into()), ("webhook-timestamp", at.into()), ("webhook-signature", signature.into())];
    Ok(request)
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    match reply.status {
        // A portal or a proxy on the way.
        200..=299 if reply.page().is_some() => reply.by_status("", now),
        200..=299 => {
            let body = reply.json().unwrap_or_default();
            ReplyVerdict::Taken(body["id"].as_str().unwrap_or_default().to_owned())
        }
        _ => reply.by_status(&reply.excerpt(), now),
    }
}

/// `whsec_` and base64 as the standard writes it; any other text is the key itself.
fn key(secret: &SecretString) -> Vec<u8> {
    let secret = secret.expose_secret();
    let encoded = secret.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
    encoded.unwrap_or_else(|| secret.as_bytes().to_vec())
}

fn document(outgoing: &Message<'_>, now: Timestamp) -> Value {
    let job = outgoing.job;
    let all = job.recipients();
    let recipients = outgoing.indices.iter().map(|index| {
        let one = all[*index];
        let field = match one.field {
            RecipientField::To => "to",
            RecipientField::Cc => "cc",
            RecipientField::Bcc => "bcc",
        };
        let mut recipient = mailbox(one.mailbox);
        recipient["field"] = field.into();
        recipient
    });
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    let files = inline.into_iter().map(|one| (one, true)).chain(attached.into_iter().map(|one| (one, false)));
    let headers = outgoing.headers.clone().into_iter().map(|(name, value)| json!({ "name": name, "value": value }));
    let mut document = json!({
        "type": TYPE,
        "timestamp": now.to_string(),
        "data": {
            "job_id": job.id().to_string(),
            "part": outgoing.part,
            "tenant": job.tenant().as_str(),
            "lane": job.lane().as_str(),
            "message_id": job.message_id(),
            "date": outgoing.dated.to_string(),
            // To be served now. The visible ones of the whole job follow, as the headers show them.
            "recipients": recipients.collect::<Value>(),
            "from": mailbox(job.from()),
            "reply_to": job.reply_to().iter().map(mailbox).collect::<Value>(),
            "to": job.to().iter().map(mailbox).collect::<Value>(),
            "cc": job.cc().iter().map(mailbox).collect::<Value>(),
            "subject": outgoing.subject,
            "text": outgoing.text,
            "html": outgoing.html,
            // Those for unsubscribing included.
            "headers": headers.collect::<Value>(),
            "attachments": files.map(|(one, is_inline)| json!({
                "filename": one.filename,
                "content_type": one.content_type,
                "content": base64(&one.content),
                "content_id": one.content_id,
                "inline": is_inline,
            })).collect::<Value>(),
            "tags": job.tags(),
            "metadata": job.metadata(),
            "tracking": { "opens": job.tracking().opens, "clicks": job.tracking().clicks },
        },
    });
    if let Some(raw) = job.raw() {
        document["data"]["mime"] = base64(&raw.delivered()).into();
        document["data"]["envelope_from"] = raw.sender().map(ToString::to_string).unwrap_or_default().into();
    }
    document
}

fn mailbox(one: &Mailbox) -> Value {
    json!({ "address": one.address().to_string(), "name": one.name() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::testing::{now, reply, shown};

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {body}");
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, &[], "", "taken ");
        check(202, &[], r#"{"id":"abc"}"#, "taken abc");
        check(204, &[], "", "taken ");
        check(200, &[], "<html>thanks</html>", "not the api");
        check(200, &[], r#"{"id":"ab"#, "taken ");
        check(301, &[], "", "config");
        check(400, &[], "no", "unsupported");
        check(401, &[], "", "config");
        check(404, &[], "", "config");
        check(410, &[], "", "config");
        check(413, &[], "", "unsupported");
        check(422, &[], "", "unsupported");
        check(429, &[("retry-after", "30")], "", "throttled after 30");
        check(429, &[("retry-after", "Mon, 23 Nov 2026 10:02:00 GMT")], "", "throttled after 120");
        check(500, &[], "<html>", "transient");
        check(503, &[("retry-after", "5")], "", "transient after 5");
        check(502, &[], "", "unclear");
        check(504, &[], "", "unclear");
    }

    #[test]
    fn the_signature_is_the_one_of_the_standard() {
        // The example of the standard's own libraries.
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = br#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#;
        assert_eq!(base64(&hmac_sha256(&key(&secret), signed)), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(key(&"plain words".into()), b"plain words");
    }
}
