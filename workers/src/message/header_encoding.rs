//! Values of header lines: folded (RFC 5322 2.2.3) and, where they are not plain ASCII, in encoded words (RFC 2047). Lettre's own encoder is not used
//! for them: it folds no address list, so that fifty recipients make one line of thousands of octets, and it writes text that merely looks like an
//! encoded word as it is.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_schemas::address::Mailbox;

/// Lines are folded where they would grow longer than this (RFC 5322 2.1.1, RFC 2047 2).
const LINE_WISH: usize = 76;
/// Longest stretch without a blank that is written as it is; a longer one could not be folded below the 998 octets of a line.
const UNBROKEN_MAX: usize = 800;
/// Longest display name that is written as one token.
const PHRASE_MAX: usize = 60;
/// `=?utf-8?q?` and `?=`.
const WORD_FRAME: usize = 12;
/// An encoded word that starts in less room than this starts on the next line instead.
const WORD_ROOM_MIN: usize = WORD_FRAME + 16;

/// The value of a header of free text, such as `Subject`. Unfolded and decoded it is `value` again.
pub(super) fn unstructured(name: &str, value: &str) -> String {
    let mut line = HeaderLine::after(name, value.len());
    if is_plain(value) {
        line.folded_at_blanks(value);
    } else {
        line.encoded_words(value);
    }
    line.out
}

/// The value of a header of addresses, such as `To`.
pub(super) fn mailboxes(name: &str, list: &[Mailbox]) -> String {
    let mut line = HeaderLine::after(name, list.len() * 48);
    for (n, mailbox) in list.iter().enumerate() {
        let comma = if n + 1 < list.len() { "," } else { "" };
        match mailbox.name() {
            None => line.token(&format!("{}{comma}", mailbox.address())),
            Some(phrase) => {
                line.phrase(phrase);
                line.token(&format!("<{}>{comma}", mailbox.address()));
            }
        }
    }
    line.out
}

/// The value of a header of tokens with blanks between them, none of which can be broken.
pub(super) fn tokens<'a>(name: &str, list: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = HeaderLine::after(name, 80);
    for token in list {
        line.token(token);
    }
    line.out
}

/// True where the value can stand as it is and parsers give it back as it is.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|c| (b' '..=b'~').contains(&c))
        && !value.contains("=?")
        && !value.starts_with(' ')
        && !value.ends_with(' ')
        && value.split(' ').all(|word| word.len() <= UNBROKEN_MAX)
        // Some parsers shrink a tab or a run of blanks to one blank.
        && !value.contains("  ")
}

pub(super) struct HeaderLine {
    out: String,
    /// Octets on the line so far.
    column: usize,
    /// The blank that separates the next token from what stands before it is already there.
    separated: bool,
}

impl HeaderLine {
    pub(super) fn after(name: &str, octets: usize) -> Self {
        Self { out: String::with_capacity(octets + octets / 8 + 16), column: name.len() + 2, separated: true }
    }

    pub(super) fn into_value(self) -> String {
        self.out
    }

    fn fold(&mut self) {
        self.out.push_str("\r\n ");
        self.column = 1;
        self.separated = true;
    }

    /// One more token behind a blank, on the next line where this one is full.
    pub(super) fn token(&mut self, token: &str) {
        if !self.separated && self.column + 1 + token.len() > LINE_WISH {
            self.fold();
        }
        if !self.separated {
            self.out.push(' ');
            self.column += 1;
        }
        self.separated = false;
        self.out.push_str(token);
        self.column += token.len();
    }

    fn folded_at_blanks(&mut self, value: &str) {
        value.split(' ').for_each(|word| self.token(word));
    }

    /// A display name: as it is, in quotes, or in encoded words.
    pub(super) fn phrase(&mut self, name: &str) {
        let printable = name.bytes().all(|c| (b' '..=b'~').contains(&c));
        if !printable || name.len() > PHRASE_MAX || name.contains("=?") || name.contains("  ") {
            self.encoded_words(name);
        } else if name.bytes().all(|c| c.is_ascii_alphanumeric() || b" -_'&+/!".contains(&c)) {
            self.token(name);
        } else {
            self.token(&format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")));
        }
    }

    /// Base64 or the `q` form, whichever is shorter. No character is cut in two.
    fn encoded_words(&mut self, value: &str) {
        let q_octets: usize = value.chars().map(q_width).sum();
        let base64 = value.len().div_ceil(3) * 4 < q_octets;
        let mut rest = value;
        while !rest.is_empty() {
            if self.column + 1 + WORD_ROOM_MIN > LINE_WISH {
                self.fold();
            }
            let room = LINE_WISH - self.column - 1;
            let (word, tail) = rest.split_at(prefix_that_fits(rest, room - WORD_FRAME, base64));
            let encoded = if base64 { format!("=?utf-8?b?{}?=", STANDARD.encode(word)) } else { q_word(word) };
            self.token(&encoded);
            rest = tail;
        }
    }
}

/// How many octets of `text`, at least one character, take at most `room` when encoded.
fn prefix_that_fits(text: &str, room: usize, base64: bool) -> usize {
    let mut width = 0;
    for (at, c) in text.char_indices() {
        width += if base64 { 0 } else { q_width(c) };
        let taken = if base64 { (at + c.len_utf8()).div_ceil(3) * 4 } else { width };
        if taken > room && at > 0 {
            return at;
        }
    }
    text.len()
}

/// What RFC 2047 5 (3) lets stand in a phrase.
fn q_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!*+-/".contains(c)
}

fn q_width(c: char) -> usize {
    if c == ' ' || q_literal(c) { 1 } else { 3 * c.len_utf8() }
}

fn q_word(text: &str) -> String {
    let mut out = String::from("=?utf-8?q?");
    for c in text.chars() {
        match c {
            ' ' => out.push('_'),
            c if q_literal(c) => out.push(c),
            c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|octet| {
                out.push('=');
                for half in [octet >> 4, octet & 15] {
                    out.extend(char::from_digit(half.into(), 16).map(|digit| digit.to_ascii_uppercase()));
                }
            }),
        }
    }
    out.push_str("?=");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_legible_and_folds_at_blanks() {
        assert_eq!(unstructured("Subject", "Your receipt"), "Your receipt");
        let long = unstructured("Subject", &"eleven char ".repeat(20).trim_end().replace("char", "chars"));
        assert!(long.contains("\r\n ") && long.split("\r\n").all(|line| line.len() <= LINE_WISH), "{long}");
    }

    #[test]
    fn what_a_parser_would_bend_is_encoded() {
        assert_eq!(unstructured("Subject", " a"), "=?utf-8?q?_a?=");
        assert_eq!(unstructured("Subject", "=?utf-8?q?x?="), "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?=");
        assert_eq!(unstructured("Subject", "Mit vielen Grüßen"), "=?utf-8?q?Mit_vielen_Gr=C3=BC=C3=9Fen?=");
        assert_eq!(unstructured("Subject", "新"), "=?utf-8?b?5paw?=");
    }

    #[test]
    fn names_are_quoted_or_encoded_as_they_need() {
        let list = |text: &str| mailboxes("To", &[Mailbox::parse(text).unwrap()]);
        assert_eq!(list("Ada Byron <a@b.test>"), "Ada Byron <a@b.test>");
        assert_eq!(list(r#""The \"Shop\": News, \\" <a@b.test>"#), r#""The \"Shop\": News, \\" <a@b.test>"#);
        assert_eq!(list("Zoë <a@b.test>"), "=?utf-8?q?Zo=C3=AB?= <a@b.test>");
        assert_eq!(list("ü@b.test"), "ü@b.test");
    }

    #[test]
    fn long_header_names_and_long_lists_fold() {
        assert_eq!(unstructured(&"X".repeat(70), "é"), "\r\n =?utf-8?b?w6k=?=");
        let list: Vec<_> =
            (0..50).map(|n| Mailbox::parse(&format!("A, B. <box{n}@customer.example>")).unwrap()).collect();
        assert!(mailboxes("To", &list).split("\r\n").all(|line| line.len() <= LINE_WISH));
    }
}
