//! Parts of a job that several APIs want alike, and what they cannot take of it. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_schemas::address::Mailbox;
use serde_json::{Map, Value};

use super::{
    message::{Addressees, Message},
    unsupported::Unsupported,
};

/// The name under which webhooks give the job id back.
pub const JOB_ID: &str = "postrider_job_id";

/// Longest stretch of octets in one encoded word of RFC 2047.
const ENCODED_OCTETS_MAX: usize = 45;

/// The recipients to reach now, none of them with letters other than ASCII before the `@`: these APIs document no SMTPUTF8.
pub fn addressees<'a>(outgoing: &Message<'a>) -> Result<Addressees<'a>, Unsupported> {
    let addressees = outgoing.addressees().ok_or(Unsupported::BlindOnly)?;
    let others = [outgoing.job.from()].into_iter().chain(outgoing.job.reply_to());
    let all = [&addressees.to, &addressees.cc, &addressees.bcc].into_iter().flatten().copied().chain(others);
    if { all }.any(|one| one.address().needs_smtputf8()) {
        return Err(Unsupported::Value("an address with letters other than ASCII before the @".to_owned()));
    }
    Ok(addressees)
}

/// The one address that answers go to, for an API that takes no list.
pub fn reply_to<'a>(outgoing: &Message<'a>) -> Result<Option<&'a Mailbox>, Unsupported> {
    match outgoing.job.reply_to() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(Unsupported::Value("several addresses to reply to".to_owned())),
    }
}

/// The extra headers and those for unsubscribing, in order, for an API that takes each name once and keeps some for itself. What is reserved
/// is in lower case; a name that ends in `*` stands for all that begin so.
pub fn headers(outgoing: &Message<'_>, reserved: &[&str]) -> Result<Vec<(String, String)>, Unsupported> {
    let list = outgoing.headers.clone();
    for (n, (name, _)) in list.iter().enumerate() {
        let lower = name.to_ascii_lowercase();
        let is_reserved = reserved.iter().any(|reserved| match reserved.strip_suffix('*') {
            Some(prefix) => lower.starts_with(prefix),
            None => lower == *reserved,
        });
        if is_reserved {
            return Err(Unsupported::Header(name.clone()));
        }
        if list[..n].iter().any(|(earlier, _)| earlier.eq_ignore_ascii_case(name)) {
            return Err(Unsupported::HeaderTwice(name.clone()));
        }
    }
    Ok(list)
}

/// Metadata and, last, the job id, as an object of strings.
pub fn metadata(outgoing: &Message<'_>) -> Result<Map<String, Value>, Unsupported> {
    let mut object: Map<String, Value> =
        outgoing.job.metadata().iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    match object.insert(JOB_ID.to_owned(), outgoing.job.id().to_string().into()) {
        Some(_) => Err(Unsupported::Value(format!("metadata named {JOB_ID}"))),
        None => Ok(object),
    }
}

/// A body that an API would refuse because it is empty, as the nearest that it takes.
pub fn not_empty(text: &str) -> &str {
    if text.is_empty() { " " } else { text }
}

/// An object with the address and the name, where there is one.
pub fn mailbox(one: &Mailbox, address_field: &str, name_field: &str) -> Value {
    let mut object = Map::new();
    object.insert(address_field.to_owned(), one.address().to_string().into());
    if let Some(name) = one.name() {
        object.insert(name_field.to_owned(), name.into());
    }
    Value::Object(object)
}

/// A name in encoded words of RFC 2047, for an API that mistreats some names as they are.
pub fn encoded_name(name: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let mut end = rest.len().min(ENCODED_OCTETS_MAX);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        words.push(format!("=?utf-8?b?{}?=", STANDARD.encode(&rest[..end])));
        rest = &rest[end..];
    }
    words.join(" ")
}

/// The media type that the end of a file's name stands for, of the usual ones.
pub fn type_of_name(filename: &str) -> Option<&'static str> {
    let (_, extension) = filename.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "bmp" => "image/bmp",
        "csv" => "text/csv",
        "doc" => "application/msword",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "gif" => "image/gif",
        "htm" | "html" => "text/html",
        "ics" => "text/calendar",
        "jpeg" | "jpg" => "image/jpeg",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "odt" => "application/vnd.oasis.opendocument.text",
        "ods" => "application/vnd.oasis.opendocument.spreadsheet",
        "pdf" => "application/pdf",
        "pkpass" => "application/vnd.apple.pkpass",
        "png" => "image/png",
        "ppt" => "application/vnd.ms-powerpoint",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "rtf" => "application/rtf",
        "tif" | "tiff" => "image/tiff",
        "txt" => "text/plain",
        "xls" => "application/vnd.ms-excel",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "xml" => "application/xml",
        "zip" => "application/zip",
        _ => return None,
    })
}

/// A media type without its parameters, in lower case.
pub fn bare_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The media type alone, for an API that takes no parameters, where nothing is lost without them: the name of the file stands elsewhere, and UTF-8 is
/// what everybody expects.
pub fn type_without_parameters(content_type: &str) -> Result<String, Unsupported> {
    let kind = bare_type(content_type);
    let is_needless = |parameter: &str| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        match name.trim().to_ascii_lowercase().as_str() {
            "charset" => matches!(value.as_str(), "utf-8" | "utf8" | "us-ascii"),
            "name" | "" => true,
            _ => false,
        }
    };
    if content_type.split(';').skip(1).all(is_needless) {
        Ok(kind)
    } else {
        Err(Unsupported::Value(format!("a file of type {kind} with parameters")))
    }
}

#[cfg(test)]
pub mod testing {
    //! Jobs for the tests of the providers.

    use jiff::Timestamp;
    use postrider_schemas::{Job, JobLimits, JobV1, job::Content, wire};
    use serde_json::{Value, json};

    use super::*;
    use crate::message::{Mime, MimeSource};

    /// A job with these fields beside or instead of the usual ones.
    pub fn job(fields: Value) -> Job {
        let mut document = json!({
            "id": "0190a5c0-7a10-7c3e-9d51-000000000001",
            "from": "Shop <shop@shop.example>",
            "to": ["Ann <ann@dest.example>"],
            "subject": "Hello",
            "text": "Hello Ann",
        });
        let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) else { panic!("no object") };
        document.extend(fields);
        let job: JobV1 = serde_json::from_value(Value::Object(document.clone())).unwrap();
        job.parse(&JobLimits::DEFAULT).unwrap()
    }

    /// For messages that no test makes MIME of.
    pub struct NoMime;

    impl MimeSource for NoMime {
        fn mime(&self) -> Result<Mime, String> {
            Err("no MIME here".to_owned())
        }

        fn mime_with(&self, _: Timestamp, _: &dyn Fn(&str) -> String) -> Result<Mime, String> {
            self.mime()
        }
    }

    const INDICES: [usize; 50] = {
        let mut all = [0; 50];
        let mut n = 0;
        while n < all.len() {
            all[n] = n;
            n += 1;
        }
        all
    };

    /// The letter of a whole job without templates.
    pub fn letter(job: &Job) -> Message<'_> {
        let Content::Bodies { text, html } = job.content() else { panic!("a template") };
        let headers = job.headers().iter().map(|one| (one.name().to_owned(), one.value().to_owned())).collect();
        let (inline, attached) = job.attachments().iter().partition(|one| one.content_id.is_some());
        Message {
            job,
            indices: &INDICES[..job.recipients().len()],
            dated: Timestamp::UNIX_EPOCH,
            part: None,
            subject: job.subject(),
            text: text.as_deref(),
            html: html.as_deref(),
            headers,
            inline,
            attached,
            mime: &NoMime,
        }
    }

    /// An example job by name.
    pub fn example(name: &str) -> Job {
        let (_, text) = postrider_schemas::examples::ALL.into_iter().find(|(one, _)| *one == name).unwrap();
        wire::decode(text.as_bytes(), None, &JobLimits::DEFAULT).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        testing::{job, letter},
        *,
    };

    #[track_caller]
    fn check_headers(name: &str, reserved: &[&str], expected: Result<usize, Unsupported>) {
        let job = job(json!({ "headers": [{ "name": name, "value": "1" }, { "name": "X-Two", "value": "2" }] }));
        assert_eq!(headers(&letter(&job), reserved).map(|list| list.len()), expected);
    }

    #[test]
    fn headers_that_an_api_keeps_or_takes_once_are_told() {
        check_headers("X-One", &[], Ok(2));
        check_headers("X-One", &["x-o"], Ok(2));
        check_headers("X-One", &["x-one"], Err(Unsupported::Header("X-One".to_owned())));
        check_headers("X-PM-Tag", &["x-pm-*"], Err(Unsupported::Header("X-PM-Tag".to_owned())));
        check_headers("x-two", &[], Err(Unsupported::HeaderTwice("X-Two".to_owned())));
    }

    #[test]
    fn a_name_in_encoded_words_is_whole() {
        assert_eq!(encoded_name("Zoë, Ann"), "=?utf-8?b?Wm/DqywgQW5u?=");
        assert_eq!(encoded_name(&"é".repeat(30)).split(' ').count(), 2);
    }

    #[test]
    fn metadata_ends_with_the_job() {
        let with = |fields| metadata(&letter(&job(fields))).map(|object| object.len());
        assert_eq!(with(json!({ "metadata": { "a": "1" } })), Ok(2));
        assert!(with(json!({ "metadata": { "postrider_job_id": "1" } })).is_err());
    }

    #[test]
    fn an_address_that_needs_smtputf8_does_not_fit() {
        assert!(addressees(&letter(&job(json!({ "to": ["zoë@dest.example"] })))).is_err());
        assert!(addressees(&letter(&job(json!({ "reply_to": ["zoë@dest.example"] })))).is_err());
        assert!(addressees(&letter(&job(json!({ "to": ["zoe@bücher.example"] })))).is_ok());
    }

    #[test]
    fn the_usual_ends_of_names_have_types() {
        assert_eq!(type_of_name("Rechnung März.PDF"), Some("application/pdf"));
        assert_eq!(type_of_name("archive.tar.zst"), None);
        assert_eq!(type_of_name("README"), None);
        assert_eq!(bare_type("Text/Plain; charset=utf-8"), "text/plain");
    }

    #[test]
    fn a_media_type_goes_bare_where_nothing_is_lost() {
        for (given, bare) in [
            ("text/csv; charset=utf-8", "text/csv"),
            ("Text/Plain;charset=\"US-ASCII\"; name=a.txt", "text/plain"),
            ("application/pdf", "application/pdf"),
        ] {
            assert_eq!(type_without_parameters(given).as_deref(), Ok(bare));
        }
        for given in ["text/csv; charset=iso-8859-1", "text/calendar; method=REQUEST"] {
            assert!(type_without_parameters(given).is_err(), "{given}");
        }
    }
}
