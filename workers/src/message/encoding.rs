//! Transfer encodings of one body (RFC 2045): which one, and the encoded octets. Lettre's own choice is not used: it leaves a bare CR in the text, and
//! it inserts the CR of each line end by moving the rest of the text, which is quadratic.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lettre::message::{Body, header::ContentTransferEncoding};
use memchr::memchr2_iter;

/// Longest line of an encoded body, without its CRLF.
const ENCODED_LINE_MAX: usize = 76;
/// Longest line of any message, without its CRLF (RFC 5322 2.1.1).
const LINE_MAX: usize = 998;
/// How many octets make one full line of base64.
const BASE64_LINE_OCTETS: usize = ENCODED_LINE_MAX / 4 * 3;

/// Encodes a text: LF, CR and CRLF all become CRLF; 7bit where that is lawful, else the shorter of quoted-printable and base64.
///
/// A text that holds `boundary` is never left as it is: quoted-printable and base64 cannot produce `=_`, with which every boundary of ours starts.
pub(super) fn text(text: &str, boundary: &str) -> Body {
    let survey = Survey::of(text.as_bytes());
    if survey.fits_7bit() && !text.contains(boundary) {
        return Body::dangerous_pre_encoded(
            with_crlf(text).into_owned().into_bytes(),
            ContentTransferEncoding::SevenBit,
        );
    }
    if survey.quoted_printable_octets() <= survey.base64_octets() {
        return Body::dangerous_pre_encoded(
            quoted_printable(text.as_bytes(), survey.quoted_printable_octets()),
            ContentTransferEncoding::QuotedPrintable,
        );
    }
    binary(with_crlf(text).as_bytes())
}

/// Encodes octets that must arrive unchanged.
pub(super) fn binary(octets: &[u8]) -> Body {
    let lines = octets.len().div_ceil(BASE64_LINE_OCTETS);
    let mut out = String::with_capacity(octets.len().div_ceil(3) * 4 + lines * 2);
    for (n, line) in octets.chunks(BASE64_LINE_OCTETS).enumerate() {
        if n > 0 {
            out.push_str("\r\n");
        }
        STANDARD.encode_string(line, &mut out);
    }
    Body::dangerous_pre_encoded(out.into_bytes(), ContentTransferEncoding::Base64)
}

/// Octets that may travel as they are, as `message/rfc822` must (RFC 2046 5.2.1); `None` where they may not.
pub(super) fn verbatim(octets: &[u8], boundary: &str) -> Option<Body> {
    let text = std::str::from_utf8(octets).ok().filter(|text| !text.contains(boundary))?;
    Survey::of(octets).fits_7bit().then(|| {
        Body::dangerous_pre_encoded(with_crlf(text).into_owned().into_bytes(), ContentTransferEncoding::SevenBit)
    })
}

/// What one pass over a text tells about its encodings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    octets: usize,
    lines: usize,
    longest: usize,
    /// Neither printable ASCII nor a tab nor a line end.
    foreign: usize,
    equals: usize,
}

impl Survey {
    fn of(text: &[u8]) -> Self {
        let mut survey = Self { octets: text.len(), ..Self::default() };
        let mut start = 0;
        for end in memchr2_iter(b'\r', b'\n', text).chain([text.len()]) {
            survey.line(&text[start..end]);
            survey.lines += usize::from(text.get(end) == Some(&b'\n'));
            start = end + 1;
        }
        survey
    }

    /// Loops without branches, which the compiler turns into a few wide instructions.
    fn line(&mut self, line: &[u8]) {
        let count = |is_one: fn(u8) -> bool| line.iter().map(|octet| usize::from(is_one(*octet))).sum::<usize>();
        self.longest = self.longest.max(line.len());
        self.equals += count(|octet| octet == b'=');
        self.foreign += count(|octet| octet != b'\t' && !matches!(octet, b' '..=b'~'));
    }

    fn fits_7bit(&self) -> bool {
        self.foreign == 0 && self.longest <= LINE_MAX
    }

    /// An estimate: soft breaks depend on where the escapes fall.
    fn quoted_printable_octets(&self) -> usize {
        let flat = self.octets + 2 * (self.foreign + self.equals) + self.lines;
        flat + flat / (ENCODED_LINE_MAX - 3) * 3
    }

    fn base64_octets(&self) -> usize {
        let flat = (self.octets + self.lines).div_ceil(3) * 4;
        flat + flat / ENCODED_LINE_MAX * 2
    }
}

/// The lines of a text, however they end, and whether a line end follows.
fn lines(mut text: &[u8]) -> impl Iterator<Item = (&[u8], bool)> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let Some(end) = text.iter().position(|c| matches!(c, b'\r' | b'\n')) else {
            return Some((std::mem::take(&mut text), false));
        };
        let (line, rest) = text.split_at(end);
        text = rest.strip_prefix(b"\r\n").unwrap_or(&rest[1..]);
        Some((line, true))
    })
}

/// The text with CRLF at each line end.
fn with_crlf(text: &str) -> Cow<'_, str> {
    let mut ends = memchr2_iter(b'\r', b'\n', text.as_bytes()).peekable();
    if ends.peek().is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + text.len() / 32 + 16);
    let mut start = 0;
    for end in ends {
        // The LF of a CRLF was written with its CR.
        if end < start {
            continue;
        }
        out.push_str(&text[start..end]);
        out.push_str("\r\n");
        start = end + if text[end..].starts_with("\r\n") { 2 } else { 1 };
    }
    out.push_str(&text[start..]);
    Cow::Owned(out)
}

fn quoted_printable(text: &[u8], estimate: usize) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(estimate);
    for (line, ended) in lines(text) {
        let mut column = 0;
        for (n, &octet) in line.iter().enumerate() {
            let literal = match octet {
                b'=' => false,
                // A blank at the end of a line is what relays like to strip.
                b' ' | b'\t' => n + 1 < line.len(),
                _ => octet.is_ascii_graphic(),
            };
            let width = if literal { 1 } else { 3 };
            if column + width >= ENCODED_LINE_MAX {
                out.extend_from_slice(b"=\r\n");
                column = 0;
            }
            if literal {
                out.push(octet);
            } else {
                out.extend_from_slice(&[b'=', HEX[usize::from(octet >> 4)], HEX[usize::from(octet & 15)]]);
            }
            column += width;
        }
        if ended {
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, encoding: ContentTransferEncoding, encoded: &str) {
        let body = text(input, "=_b");
        assert_eq!((body.encoding(), String::from_utf8(body.into_vec()).unwrap()), (encoding, encoded.to_owned()));
    }

    #[test]
    fn short_ascii_lines_stay_as_they_are_with_crlf() {
        check("a\nb\r\nc\rd\n\r\n\re", ContentTransferEncoding::SevenBit, "a\r\nb\r\nc\r\nd\r\n\r\n\r\ne");
        check("", ContentTransferEncoding::SevenBit, "");
        check(&"x".repeat(998), ContentTransferEncoding::SevenBit, &"x".repeat(998));
    }

    #[test]
    fn a_few_foreign_letters_make_quoted_printable() {
        check(
            "Liebe Leserin und lieber Leser, herzliche Grüße und = \t\n",
            ContentTransferEncoding::QuotedPrintable,
            "Liebe Leserin und lieber Leser, herzliche Gr=C3=BC=C3=9Fe und =3D =09\r\n",
        );
        check(
            "A text ends with a blank é ",
            ContentTransferEncoding::QuotedPrintable,
            "A text ends with a blank =C3=A9=20",
        );
        check("A text with a NUL: \0", ContentTransferEncoding::QuotedPrintable, "A text with a NUL: =00");
    }

    #[test]
    fn mostly_foreign_letters_make_base64() {
        check("新しい本\n", ContentTransferEncoding::Base64, "5paw44GX44GE5pysDQo=");
    }

    #[test]
    fn a_text_with_the_boundary_in_it_is_encoded() {
        check("see\n--=_b\n", ContentTransferEncoding::QuotedPrintable, "see\r\n--=3D_b\r\n");
        assert!(verbatim(b"see\n--=_b\n", "=_b").is_none());
        assert!(verbatim("é".as_bytes(), "=_b").is_none());
        assert_eq!(verbatim(b"a\nb", "=_b").unwrap().as_ref(), b"a\r\nb");
    }

    #[test]
    fn encoded_lines_have_at_most_76_octets() {
        for body in [text(&"x é=".repeat(3000), "=_b"), text(&"y".repeat(999), "=_b"), binary(&[7; 4000])] {
            let lines: Vec<_> =
                body.as_ref().split(|c| *c == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
            assert!(lines.len() > 10 && lines.iter().all(|line| line.len() <= 76 && !line.contains(&b'\r')));
        }
    }
}
