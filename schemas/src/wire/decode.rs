//! From bytes to a document: character sets, JSON, and errors in plain words that quote no value.

use std::{borrow::Cow, io::Read as _};

use flate2::bufread::GzDecoder;
use memchr::{memchr2, memmem};
use serde::{Deserialize, de::IgnoredAny};

use super::{DecodeError, JOB_TYPE, JobV1, invalid};
use crate::{job::Job, limits::JobLimits};

/// Decodes a job from the wire: JSON in UTF-8 or UTF-16, as it is or in gzip. A recipient that cannot be served is [rejected](Job::rejected), unless
/// nobody else is left.
///
/// `message_type` is the AMQP `type` property, where the producer set one.
pub fn decode(bytes: &[u8], message_type: Option<&str>, limits: &JobLimits) -> Result<Job, DecodeError> {
    if let Some(other) = message_type.filter(|kind| *kind != JOB_TYPE) {
        return Err(DecodeError::Version(without_addresses(&other.chars().take(80).collect::<String>())));
    }
    if bytes.len() > limits.bytes_max {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), max: limits.bytes_max });
    }
    let job = decode_v1(&unpacked(bytes, limits.bytes_max)?)?;
    if job.id.is_none() {
        return Err(invalid("id", "is required: a UUID, the same each time this job is published"));
    }
    job.parse_serving_others(limits)
}

/// Decodes the document alone, without the rules of its fields. For tools that add an `id` before [`JobV1::parse`].
pub fn decode_v1(bytes: &[u8]) -> Result<JobV1, DecodeError> {
    let document = utf8(bytes)?;
    let bytes = document.as_ref();
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(document_error("expected one job, found a list; publish each job as a message of its own"));
    }
    let exact = with_exact_integers(bytes);
    let bytes = exact.as_ref();
    // Keeping track of the path costs more than the reading itself, and only an error has a use for it.
    if let Ok(job) = serde_json::from_slice::<JobV1>(bytes) {
        return if job.subject.is_empty() && job.mime.is_none() && !has_subject(bytes) {
            Err(document_error("`subject` is required"))
        } else {
            Ok(job)
        };
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let job = serde_path_to_error::deserialize(&mut reader).map_err(|error| DecodeError::Json {
        path: without_strange_names(&error.path().to_string()),
        reason: in_plain_words(error.inner()),
    })?;
    reader.end().map_err(|error| document_error(&in_plain_words(&error)))?;
    Ok(job)
}

/// True where there is a subject, be it empty.
fn has_subject(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Subject {
        subject: Option<IgnoredAny>,
    }
    serde_json::from_slice::<Subject>(bytes).is_ok_and(|one| one.subject.is_some())
}

/// How many octets a body in gzip says to have inside; nothing for any other body. It is read up to there and no further.
pub fn packed_octets(body: &[u8]) -> Option<usize> {
    let is_gzip = body.starts_with(&[0x1f, 0x8b, 8]) && body.len() >= 18;
    let size = *body.last_chunk::<4>().filter(|_| is_gzip)?;
    usize::try_from(u32::from_le_bytes(size)).ok()
}

/// What is inside of a body in gzip (RFC 1952), at most `max` octets; any other body as it is.
pub fn unpacked(body: &[u8], max: usize) -> Result<Cow<'_, [u8]>, DecodeError> {
    let Some(octets) = packed_octets(body) else { return Ok(Cow::Borrowed(body)) };
    if octets > max {
        return Err(DecodeError::TooLarge { bytes: octets, max });
    }
    let (mut inside, mut reader) = (Vec::new(), GzDecoder::new(body));
    let read = (&mut reader).take(octets as u64 + 1).read_to_end(&mut inside);
    if read.is_err() || inside.len() != octets || !reader.into_inner().is_empty() {
        return Err(document_error("is broken gzip, or several pieces of it; pack the document in one piece"));
    }
    Ok(Cow::Owned(inside))
}

/// The document with integers that no number type here holds as texts, so that a template prints their digits as they are.
fn with_exact_integers(bytes: &[u8]) -> Cow<'_, [u8]> {
    // Only variables may hold numbers.
    if memmem::find(bytes, b"\"variables\"").is_none() {
        return Cow::Borrowed(bytes);
    }
    let (mut out, mut copied, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let is_part = |octet: &u8| octet.is_ascii_digit() || b"+-.eE".contains(octet);
                let end = at + bytes[at..].iter().take_while(|octet| is_part(octet)).count();
                if is_huge_integer(&bytes[at..end]) {
                    out.extend_from_slice(&bytes[copied..at]);
                    out.push(b'"');
                    out.extend_from_slice(&bytes[at..end]);
                    out.push(b'"');
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

/// The position behind the quote that ends a text.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// An integer of JSON that neither 64 bits with nor without a sign hold.
fn is_huge_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_integer = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits.first() != Some(&b'0'));
    let Some(text) = std::str::from_utf8(text).ok().filter(|_| is_integer && digits.len() >= 19) else { return false };
    text.parse::<i64>().is_err() && text.parse::<u64>().is_err()
}

fn document_error(reason: &str) -> DecodeError {
    DecodeError::Json { path: ".".to_owned(), reason: reason.to_owned() }
}

/// The document in UTF-8, without a byte order mark. UTF-16 is told by its mark, or by the NUL beside the first octet.
pub(super) fn utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeError> {
    let (bytes, read): (_, fn([u8; 2]) -> u16) = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => return Ok(Cow::Borrowed(rest)),
        [0xff, 0xfe, rest @ ..] | rest @ [_, 0, ..] => (rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] | rest @ [0, _, ..] => (rest, u16::from_be_bytes),
        _ => return Ok(Cow::Borrowed(bytes)),
    };
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
    match String::from_utf16(&units) {
        Ok(text) if bytes.len() % 2 == 0 => Ok(Cow::Owned(text.into_bytes())),
        _ => Err(document_error("is broken UTF-16; write the document in UTF-8")),
    }
}

/// What is wrong, without a word of the document: reasons end up in logs and events. Names of fields are shown where they look like names.
fn in_plain_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return if text.contains("surrogate") || text.contains("hex escape") || text.contains("unicode code point") {
            format!("half of a character (line {}, column {}): a text was cut within it", error.line(), error.column())
        } else {
            format!("not valid JSON: {text}")
        };
    }
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    let name = |start: &str| text.strip_prefix(start)?.split('`').next().filter(|name| is_plain(name));
    if let Some(name) = name("missing field `") {
        return format!("`{name}` is required");
    }
    if let Some(name) = name("duplicate field `") {
        return format!("`{name}` stands there twice");
    }
    if text.starts_with("unknown field `") {
        let shown = name("unknown field `").filter(|name| !name.contains(|c: char| c.is_ascii_digit())).unwrap_or("?");
        return format!("unknown field `{shown}`; `postrider schema` prints the fields of a job");
    }
    if text.starts_with("unknown variant `") {
        return "expected `transactional` or `bulk`".to_owned();
    }
    let Some((start, expected)) = text.split_once(", expected ") else {
        return if text.starts_with("expected ") {
            text.to_owned()
        } else {
            "is not of the form that a job has".to_owned()
        };
    };
    let expected = match expected.rsplit_once(", expected ").map_or(expected, |(_, expected)| expected) {
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        other if other.contains("UUID") || other.contains("uuid") => "a UUID",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    let found = start.split(':').nth(1).unwrap_or_default().trim_start();
    let kinds = [
        ("integer", "a number"),
        ("floating point", "a number"),
        ("boolean", "true or false"),
        ("string", "a text"),
        ("sequence", "a list"),
        ("map", "an object"),
        ("null", "null"),
        ("unit", "null"),
    ];
    match kinds.iter().find(|(kind, _)| text.starts_with("invalid type") && found.starts_with(kind)) {
        Some((_, kind)) => format!("expected {expected}, found {kind}"),
        None => format!("expected {expected}"),
    }
}

/// The path up to the first name that is none of ours: keys of the document are values too.
fn without_strange_names(path: &str) -> String {
    let known: Vec<&str> = path.split('.').take_while(|name| is_plain(name.trim_end_matches(']'))).collect();
    let is_whole = known.len() == path.split('.').count() || path == ".";
    if is_whole { path.to_owned() } else { [known.as_slice(), &["?"]].concat().join(".") }
}

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-[".contains(c))
        && name.chars().filter(char::is_ascii_digit).count() < 4
}

/// For what no rule above foresees.
fn without_addresses(text: &str) -> String {
    text.split(' ').map(|word| if word.contains('@') { "[address]" } else { word }).collect::<Vec<_>>().join(" ")
}
