//! A whole message that its producer made (RFC 5322). It is looked at once: for its author, its `Message-ID`, and for what of it is not delivered.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;

use crate::address::{EmailAddress, Mailbox};

/// Longest header block that is looked at, in octets.
const HEADER_OCTETS_MAX: usize = 1024 * 1024;
/// Headers with this beginning are for Postrider and are not delivered.
pub const CONTROL_PREFIX: &str = "x-postrider-";

/// A whole message with its envelope sender. `Debug` output shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RawMessage {
    bytes: Bytes,
    sender: Option<EmailAddress>,
    author: EmailAddress,
    message_id: Option<String>,
    fields: Vec<RawField>,
    /// What is not delivered.
    left_out: Vec<Range<usize>>,
    has_eight_bit_header: bool,
}

/// A header field of a message: where its name and its value stand.
#[derive(Clone, PartialEq, Eq)]
struct RawField {
    name: Range<usize>,
    value: Range<usize>,
}

/// Why bytes are no message that can be delivered. Quotes nothing of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RawError {
    /// There is nothing.
    #[error("is empty")]
    Empty,
    /// SMTP cannot carry it.
    #[error("holds a NUL octet, which no mail may have; encode the part in base64")]
    Nul,
    /// A line of the header is none.
    #[error("line {0} of its header is no header field; the header ends with the first empty line")]
    Field(usize),
    /// The header is too long.
    #[error("its header has more than {HEADER_OCTETS_MAX} octets")]
    HeaderLength,
    /// Nobody wrote it.
    #[error("needs a From header with an address")]
    From,
}

/// Who is named as the envelope sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvelopeSender {
    /// The author.
    Author,
    /// Nobody: what is returned goes nowhere (RFC 5321 4.5.5).
    Null,
    /// This address.
    Address(EmailAddress),
}

impl RawMessage {
    /// Reads the header of a message. Lines end in CRLF, LF or CR.
    pub fn parse(bytes: Bytes, sender: EnvelopeSender) -> Result<Self, RawError> {
        if bytes.is_empty() {
            return Err(RawError::Empty);
        }
        if bytes.contains(&0) {
            return Err(RawError::Nul);
        }
        let (fields, whole) = fields(&bytes)?;
        let name = |field: &RawField| String::from_utf8_lossy(&bytes[field.name.clone()]).to_ascii_lowercase();
        let value = |wanted: &str| {
            fields.iter().find(|field| name(field) == wanted).map(|field| unfolded(&bytes[field.value.clone()]))
        };
        let author = value("from").and_then(|text| first_address(&text)).ok_or(RawError::From)?;
        let message_id = value("message-id").map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let is_left_out = |field: &RawField| {
            let name = name(field);
            matches!(name.as_str(), "bcc" | "resent-bcc") || name.starts_with(CONTROL_PREFIX)
        };
        let (left_out, kept): (Vec<_>, Vec<_>) = fields.iter().zip(whole).partition(|(field, _)| is_left_out(field));
        let has_eight_bit_header = kept.iter().any(|(_, range)| !bytes[range.clone()].is_ascii());
        let sender = match sender {
            EnvelopeSender::Author => Some(author.clone()),
            EnvelopeSender::Null => None,
            EnvelopeSender::Address(address) => Some(address),
        };
        let left_out = left_out.into_iter().map(|(_, range)| range).collect();
        Ok(Self { bytes, sender, author, message_id, fields, left_out, has_eight_bit_header })
    }

    /// As it came.
    pub fn as_given(&self) -> &Bytes {
        &self.bytes
    }

    /// As it is delivered: without `Bcc` and the headers that are for Postrider, else octet by octet as it came.
    pub fn delivered(&self) -> Cow<'_, [u8]> {
        if self.left_out.is_empty() {
            return Cow::Borrowed(&self.bytes);
        }
        let mut out = Vec::with_capacity(self.bytes.len());
        let mut at = 0;
        for range in &self.left_out {
            out.extend_from_slice(&self.bytes[at..range.start]);
            at = range.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        Cow::Owned(out)
    }

    /// The envelope sender; nothing where what is returned goes nowhere.
    pub fn sender(&self) -> Option<&EmailAddress> {
        self.sender.as_ref()
    }

    /// The first address of `From`.
    pub fn author(&self) -> &EmailAddress {
        &self.author
    }

    /// Its `Message-ID`, where it has one.
    pub fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// The values of a header, unfolded and not decoded.
    pub fn header(&self, name: &str) -> impl Iterator<Item = String> {
        let fields = self
            .fields
            .iter()
            .filter(move |field| self.bytes[field.name.clone()].eq_ignore_ascii_case(name.as_bytes()));
        fields.map(move |field| unfolded(&self.bytes[field.value.clone()]).trim().to_owned())
    }

    /// Every header, unfolded and not decoded: name and value.
    pub fn headers(&self) -> impl Iterator<Item = (String, String)> {
        self.fields.iter().map(move |field| {
            let name = String::from_utf8_lossy(&self.bytes[field.name.clone()]).into_owned();
            (name, unfolded(&self.bytes[field.value.clone()]).trim().to_owned())
        })
    }

    /// Some octet of the header as it is delivered is above 127: the way needs SMTPUTF8 (RFC 6531).
    pub fn has_eight_bit_header(&self) -> bool {
        self.has_eight_bit_header
    }
}

impl std::fmt::Debug for RawMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[message of {} octets]", self.bytes.len())
    }
}

/// The fields of the header, each with the lines that it takes.
fn fields(bytes: &[u8]) -> Result<(Vec<RawField>, Vec<Range<usize>>), RawError> {
    let (mut fields, mut whole): (Vec<RawField>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    let (mut at, mut number) = (0, 0);
    while at < bytes.len() {
        number += 1;
        let (end, next) = line_end(bytes, at);
        let line = &bytes[at..end];
        if line.is_empty() {
            break;
        }
        if next > HEADER_OCTETS_MAX {
            return Err(RawError::HeaderLength);
        }
        if matches!(line[0], b' ' | b'\t') {
            let (Some(field), Some(lines)) = (fields.last_mut(), whole.last_mut()) else {
                return Err(RawError::Field(number));
            };
            field.value.end = end;
            lines.end = next;
        } else {
            let colon = line.iter().position(|octet| *octet == b':').ok_or(RawError::Field(number))?;
            // RFC 5322 4.5 allows blanks in front of the colon.
            let name = line[..colon].trim_ascii_end();
            if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                return Err(RawError::Field(number));
            }
            fields.push(RawField { name: at..at + name.len(), value: at + colon + 1..end });
            whole.push(at..next);
        }
        at = next;
    }
    Ok((fields, whole))
}

/// Where a line ends, and where the next one begins.
fn line_end(bytes: &[u8], from: usize) -> (usize, usize) {
    match bytes[from..].iter().position(|octet| matches!(octet, b'\r' | b'\n')) {
        Some(length) => {
            let end = from + length;
            let is_crlf = bytes[end..].starts_with(b"\r\n");
            (end, end + if is_crlf { 2 } else { 1 })
        }
        None => (bytes.len(), bytes.len()),
    }
}

fn unfolded(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().filter(|c| !matches!(c, '\r' | '\n')).collect()
}

/// The first address of a header, however its name is written.
fn first_address(text: &str) -> Option<EmailAddress> {
    if let Ok(list) = Mailbox::parse_list(text) {
        return list.first().map(|one| one.address().clone());
    }
    if let Some((_, rest)) = text.split_once('<') {
        return EmailAddress::parse(rest.split('>').next()?).ok();
    }
    // A comment in parentheses (RFC 5322 3.2.2).
    EmailAddress::parse(text.split('(').next()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RawMessage, RawError> {
        RawMessage::parse(Bytes::copy_from_slice(text.as_bytes()), EnvelopeSender::Author)
    }

    #[test]
    fn author_and_message_id_are_read_however_they_are_written() {
        for (from, expected) in [
            ("a@b.test", "a@b.test"),
            ("Ada <a@b.test>", "a@b.test"),
            ("=?utf-8?q?Ada=2C_B?= <a@b.test>", "a@b.test"),
            ("\"Byron, Ada\"\r\n <a@b.test>, c@d.test", "a@b.test"),
            ("a@b.test (Ada)", "a@b.test"),
            ("Ada (the first) <a@b.test>", "a@b.test"),
        ] {
            let raw = parse(&format!("Subject: x\r\nfrom : {from}\r\nMESSAGE-ID:\r\n <1@b.test>\r\n\r\nbody\r\n"));
            let raw = raw.unwrap_or_else(|error| panic!("{from}: {error}"));
            assert_eq!((raw.author().to_string().as_str(), raw.message_id()), (expected, Some("<1@b.test>")));
            assert_eq!(raw.sender().map(ToString::to_string).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(parse(""), Err(RawError::Empty));
        assert_eq!(parse("Subject: x\r\n\r\nFrom: a@b.test\r\n"), Err(RawError::From));
        assert_eq!(parse("From: nobody\r\n\r\n"), Err(RawError::From));
        assert_eq!(parse("From: a@b.test\r\nhello there\r\n\r\n"), Err(RawError::Field(2)));
        assert_eq!(parse(" x: a\r\n\r\n"), Err(RawError::Field(1)));
        assert_eq!(parse("From: a@b.test\r\n\r\n\0"), Err(RawError::Nul));
        let long = format!("From: a@b.test\r\nX: {}\r\n\r\n", "x".repeat(HEADER_OCTETS_MAX));
        assert_eq!(parse(&long), Err(RawError::HeaderLength));
    }

    #[test]
    fn blind_copies_and_control_headers_stay_behind_and_nothing_else_changes() {
        let kept =
            ["Received: x\n", "From: a@b.test\r\n", "Subject:  a\r\n\tb\r\n", "\r\n", "Bcc: of the body\r\n", "\n."];
        let whole = [
            "BCC: x@y.test,\r\n z@y.test\r\n",
            kept[0],
            kept[1],
            "X-Postrider-Tag: a\r\n",
            kept[2],
            "Resent-Bcc : q@y.test\n",
            &kept[3..].concat(),
        ];
        let raw = parse(&whole.concat()).unwrap();
        assert_eq!(String::from_utf8(raw.delivered().into_owned()).unwrap(), kept.concat());
        assert_eq!(raw.header("subject").collect::<Vec<_>>(), ["a\tb"]);
        assert_eq!(raw.as_given().len(), whole.concat().len());
        let plain = parse("From: a@b.test\r\n\r\nx").unwrap();
        assert!(matches!(plain.delivered(), Cow::Borrowed(_)));
    }

    #[test]
    fn a_header_in_eight_bits_is_told_from_a_body_in_eight_bits() {
        assert!(!parse("From: a@b.test\r\n\r\nZoë\r\n").unwrap().has_eight_bit_header());
        assert!(parse("From: Zoë <a@b.test>\r\n\r\n").unwrap().has_eight_bit_header());
        assert!(!parse("From: a@b.test\r\nBcc: Zoë <z@b.test>\r\n\r\n").unwrap().has_eight_bit_header());
    }
}
