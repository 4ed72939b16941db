//! The header block of the message, `Content-*` apart. `Bcc` is never in it.

use std::time::SystemTime;

use jiff::Timestamp;
use lettre::{
    Address, Message,
    address::Envelope,
    message::{
        MessageBuilder,
        header::{HeaderName, HeaderValue},
    },
};
use postrider_schemas::{
    address::Mailbox,
    fields::Header,
    job::{Job, ListUnsubscribe},
};

use super::{ComposeError, header_encoding, structured};

/// Stands in `To` where the job has blind recipients only: a mail without any addressee looks like spam.
const NOBODY: &str = "undisclosed-recipients:;";
/// Lettre parses the raw `From` once more, only to see that there is one, and refuses some addresses that RFC 6531 allows. It gets this one to see;
/// what is written is the encoded value.
const FROM_SEEN_BY_LETTRE: &str = "from@example.org";

/// Lettre's builder with all headers of the job in place.
pub(super) fn builder(
    job: &Job,
    subject: &str,
    now: Timestamp,
    from: &Address,
    recipients: &[Address],
) -> Result<MessageBuilder, ComposeError> {
    let envelope = Envelope::new(Some(from.clone()), recipients.to_vec()).map_err(assemble)?;
    let from_line = header_encoding::mailboxes("From", std::slice::from_ref(job.from()));
    let mut builder = Message::builder()
        .envelope(envelope)
        // A `Date` cannot lie before 1970 in lettre, and no clock of ours does.
        .date(SystemTime::from(now).max(SystemTime::UNIX_EPOCH))
        .raw_header(HeaderValue::dangerous_new_pre_encoded(
            HeaderName::new_from_ascii_str("From"),
            FROM_SEEN_BY_LETTRE.to_owned(),
            from_line,
        ));
    for (name, list) in [("Reply-To", job.reply_to()), ("To", job.to()), ("Cc", job.cc())] {
        builder = match addresses(name, list, job) {
            Some(value) => builder.raw_header(encoded(name, value)),
            None => builder,
        };
    }
    builder = builder
        .raw_header(encoded("Subject", header_encoding::unstructured("Subject", subject)))
        .raw_header(encoded("Message-ID", job.message_id()));
    if let Some(unsubscribe) = job.list_unsubscribe() {
        builder = list_unsubscribe(builder, unsubscribe);
    }
    for (name, value) in extra(job.headers()) {
        let name = HeaderName::new_from_ascii(name.to_owned()).map_err(assemble)?;
        builder = builder.raw_header(HeaderValue::dangerous_new_pre_encoded(name, String::new(), value));
    }
    Ok(builder)
}

fn addresses(name: &str, list: &[Mailbox], job: &Job) -> Option<String> {
    let nobody = name == "To" && job.to().is_empty() && job.cc().is_empty();
    match list {
        [] if nobody => Some(NOBODY.to_owned()),
        [] => None,
        list => Some(header_encoding::mailboxes(name, list)),
    }
}

/// RFC 2369 and RFC 8058.
fn list_unsubscribe(builder: MessageBuilder, ways: &ListUnsubscribe) -> MessageBuilder {
    unsubscribe_lines(ways)
        .into_iter()
        .fold(builder, |builder, (name, value)| builder.raw_header(encoded(name, structured::urls(name, &value))))
}

/// The header lines for unsubscribing, unfolded.
pub(super) fn unsubscribe_lines(ways: &ListUnsubscribe) -> Vec<(&'static str, String)> {
    let url = ways.url.as_ref().map(|url| format!("<{url}>"));
    let mailto = ways.mailto.as_ref().map(|mailto| format!("<mailto:{mailto}>"));
    let value = [url, mailto].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let mut lines = vec![("List-Unsubscribe", value)];
    if ways.one_click {
        lines.push(("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned()));
    }
    lines
}

/// The extra headers, each name once: lettre keeps one value for a name, so the further lines of a name that stands several times follow its first
/// one, inside its value.
fn extra(headers: &[Header]) -> Vec<(&str, String)> {
    let mut lines: Vec<(&str, String)> = Vec::with_capacity(headers.len());
    for header in headers {
        let value = structured::value(header.name(), header.value());
        match lines.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(header.name())) {
            Some((_, first)) => {
                for piece in ["\r\n", header.name(), ": ", &value] {
                    first.push_str(piece);
                }
            }
            None => lines.push((header.name(), value)),
        }
    }
    lines
}

fn encoded(name: &'static str, value: String) -> HeaderValue {
    HeaderValue::dangerous_new_pre_encoded(HeaderName::new_from_ascii_str(name), String::new(), value)
}

/// Lettre's errors hold fixed texts only.
pub(super) fn assemble(error: impl std::error::Error) -> ComposeError {
    ComposeError::Assemble(error.to_string())
}
