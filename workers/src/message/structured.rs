//! Values of extra headers that machines read: message ids, addresses, URLs, JSON. They are folded and never put into encoded words (RFC 2047 5), which
//! stand for text alone.

use std::{borrow::Cow, fmt::Write as _};

use percent_encoding::{CONTROLS, utf8_percent_encode};
use postrider_schemas::address::Mailbox;
use serde::de::IgnoredAny;

use super::header_encoding::{self, HeaderLine};

/// Longest stretch on one line; a line has at most 998 octets (RFC 5322 2.1.1).
const STRETCH_MAX: usize = 900;

/// What stands in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Addresses,
    Ids,
    ListId,
    Urls,
    Tokens,
}

/// Headers whose form is known, in lower case. All others hold text.
const KNOWN: [(&str, Kind); 34] = [
    ("references", Kind::Ids),
    ("in-reply-to", Kind::Ids),
    ("supersedes", Kind::Ids),
    ("original-message-id", Kind::Ids),
    ("disposition-notification-to", Kind::Addresses),
    ("return-receipt-to", Kind::Addresses),
    ("x-confirm-reading-to", Kind::Addresses),
    ("errors-to", Kind::Addresses),
    ("mail-followup-to", Kind::Addresses),
    ("mail-reply-to", Kind::Addresses),
    ("abuse-reports-to", Kind::Addresses),
    ("list-id", Kind::ListId),
    ("list-help", Kind::Urls),
    ("list-subscribe", Kind::Urls),
    ("list-post", Kind::Urls),
    ("list-owner", Kind::Urls),
    ("list-archive", Kind::Urls),
    ("archived-at", Kind::Urls),
    ("auto-submitted", Kind::Tokens),
    ("precedence", Kind::Tokens),
    ("priority", Kind::Tokens),
    ("importance", Kind::Tokens),
    ("sensitivity", Kind::Tokens),
    ("x-priority", Kind::Tokens),
    ("x-msmail-priority", Kind::Tokens),
    ("x-auto-response-suppress", Kind::Tokens),
    ("feedback-id", Kind::Tokens),
    ("x-entity-ref-id", Kind::Tokens),
    ("disposition-notification-options", Kind::Tokens),
    ("original-recipient", Kind::Tokens),
    ("expires", Kind::Tokens),
    ("expiry-date", Kind::Tokens),
    ("message-context", Kind::Tokens),
    ("require-recipient-valid-since", Kind::Tokens),
];

/// The value of an extra header as it goes over the wire.
pub(super) fn value(name: &str, value: &str) -> String {
    let kind = KNOWN.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map_or(Kind::Text, |(_, kind)| *kind);
    let folded = match kind {
        Kind::Text => json(name, value),
        Kind::Addresses => match Mailbox::parse_list(value) {
            Ok(list) => Some(header_encoding::mailboxes(name, &list)),
            Err(_) => tokens(name, value),
        },
        // Ids without a blank between them are ids all the same.
        Kind::Ids => tokens(name, &value.replace("><", "> <")),
        Kind::ListId => list_id(name, value),
        Kind::Urls => Some(urls(name, value)),
        Kind::Tokens => tokens(name, value),
    };
    // What has no lawful form is text to its reader.
    folded.unwrap_or_else(|| header_encoding::unstructured(name, value))
}

/// Words between blanks; nothing where one of them cannot stand as it is.
fn tokens(name: &str, value: &str) -> Option<String> {
    let fits = value.is_ascii() && value.split_ascii_whitespace().all(|word| word.len() <= STRETCH_MAX);
    fits.then(|| header_encoding::tokens(name, value.split_ascii_whitespace()))
}

/// URLs in angle brackets. What is not ASCII is escaped in them; a long one is folded within, where blanks mean nothing (RFC 2369 2).
pub(super) fn urls(name: &str, value: &str) -> String {
    let escaped: Cow<'_, str> = if value.is_ascii() {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(utf8_percent_encode(value, CONTROLS).to_string())
    };
    let mut line = HeaderLine::after(name, escaped.len());
    for word in escaped.split_ascii_whitespace() {
        let mut rest = word;
        while rest.len() > STRETCH_MAX {
            let (now, later) = rest.split_at(STRETCH_MAX);
            line.token(now);
            rest = later;
        }
        line.token(rest);
    }
    line.into_value()
}

/// A phrase and an id in angle brackets (RFC 2919).
fn list_id(name: &str, value: &str) -> Option<String> {
    if value.is_ascii() {
        return tokens(name, value);
    }
    let (phrase, id) = value.trim().strip_suffix('>')?.rsplit_once('<')?;
    let (phrase, id) = (phrase.trim().trim_matches('"'), id.trim());
    if !id.is_ascii() || id.len() > STRETCH_MAX || id.contains(' ') {
        return None;
    }
    let mut line = HeaderLine::after(name, value.len());
    line.phrase(phrase);
    line.token(&format!("<{id}>"));
    Some(line.into_value())
}

/// A document of JSON, for orders to a provider; nothing for anything else. Letters beyond ASCII are escaped. It stays as it is where it fits on one line,
/// and else is folded behind a comma between two values, or at a blank.
fn json(name: &str, value: &str) -> Option<String> {
    let value = value.trim();
    if !value.starts_with(['{', '[']) || serde_json::from_str::<IgnoredAny>(value).is_err() {
        return None;
    }
    let mut document = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_ascii() {
            document.push(if c == '\t' { ' ' } else { c });
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(document, "\\u{unit:04x}");
            }
        }
    }
    let mut out = String::with_capacity(document.len() + 64);
    let mut column = name.len() + 2;
    for piece in pieces(&document) {
        if column + piece.len() > STRETCH_MAX {
            out.push_str(if piece.starts_with(' ') { "\r\n" } else { "\r\n " });
            column = 1;
        }
        if column + piece.len() > STRETCH_MAX + 80 {
            return None;
        }
        out.push_str(piece);
        column += piece.len();
    }
    Some(out)
}

/// The stretches of a document between the places where it may be folded: behind commas outside of texts, and in front of single blanks.
fn pieces(document: &str) -> impl Iterator<Item = &str> {
    let mut rest = document;
    let mut is_text = false;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b'\\' if is_text => at += 1,
                b'"' => is_text = !is_text,
                b',' if !is_text => {
                    at += 1;
                    break;
                }
                // A line of blanks alone would be none.
                b' ' if at > 0 && bytes[at - 1] != b' ' => break,
                _ => {}
            }
            at += 1;
        }
        let (piece, later) = rest.split_at(at.min(rest.len()));
        rest = later;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, given: &str, expected: &str) {
        assert_eq!(value(name, given), expected, "{name}");
    }

    /// Folded, with lines that are short enough.
    #[track_caller]
    fn unfolded(name: &str, given: &str) -> String {
        let folded = value(name, given);
        let line_fits = |line: &str| line.len() <= 998 && !line.trim().is_empty();
        assert!(format!("{name}: {folded}").split("\r\n").all(line_fits), "{folded}");
        assert!(!folded.contains("=?"), "{folded}");
        folded.replace("\r\n", "")
    }

    #[test]
    fn what_machines_read_is_never_an_encoded_word() {
        check("References", "<a@b.test>  <c@d.test>\t<e@f.test>", "<a@b.test> <c@d.test> <e@f.test>");
        check("in-reply-to", "<a=?x@b.test>", "<a=?x@b.test>");
        check("List-Id", "Lamps and  more <lamps.shop.example>", "Lamps and more <lamps.shop.example>");
        check("List-Id", "Grüße <lamps.shop.example>", "=?utf-8?b?R3LDvMOfZQ==?= <lamps.shop.example>");
        check("Disposition-Notification-To", "Zoë <zoe@b.test>", "=?utf-8?q?Zo=C3=AB?= <zoe@b.test>");
        check("Errors-To", "<a@b.test>", "a@b.test");
        check("List-Help", "<https://shop.example/é>", "<https://shop.example/%C3%A9>");
        check("X-SMTPAPI", "{\"to\":  [\"é𝄞\"]}", "{\"to\":  [\"\\u00e9\\ud834\\udd1e\"]}");
        assert!(value("X-Note", "{not json  é}").starts_with("=?utf-8?"), "text");
    }

    #[test]
    fn long_values_are_folded_and_say_the_same() {
        let ids: Vec<String> =
            (0..100).map(|n| format!("<thread.{n:03}.{}@mail.partner.example>", "0".repeat(32))).collect();
        let ids = ids.concat();
        assert_eq!(unfolded("References", &ids), ids.replace("><", "> <"));
        let url = format!("<https://shop.example/{}>", "abc".repeat(1000));
        assert_eq!(unfolded("List-Archive", &url).replace(' ', ""), url);
        let entries: Vec<String> = (0..200).map(|n| format!("\"name {n}, of \\\"{n}\\\"\"")).collect();
        let document = format!("[{}]", entries.join(","));
        let shown = unfolded("X-SMTPAPI", &document);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&shown), read(&document));
        let sentence = format!("{{\"text\":\"{}\"}}", "many words ".repeat(300));
        assert_eq!(unfolded("X-SMTPAPI", &sentence), sentence);
        assert!(value("X-SMTPAPI", &format!("[\"{}\"]", "x".repeat(2000))).contains("=?"), "no lawful place");
    }
}
