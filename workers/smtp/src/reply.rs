//! Reads replies out of bytes, however they were split on the way. Does no IO and judges no code.
//!
//! A server is not trusted: lines, their number and their total length are bounded. Where the lines of a reply bear different
//! codes the first digit decides: 4 and 5 together are 4, and only a yes beside a no says nothing. Of a reply without end the
//! beginning counts. Whatever does not fit is [`Garbage`]; after it, and after a reply without end, the position in the
//! conversation is lost and the connection is of no further use.

use std::{borrow::Cow, fmt};

use memchr::memchr;

/// Longest line, its end included. RFC 5321 wants 512; some servers put whole sentences there.
const LINE_MAX: usize = 8192;
/// Most lines of one reply. The longest EHLO in the wild has some thirty.
const LINES_MAX: usize = 128;
/// Longest reply.
const REPLY_MAX: usize = 64 * 1024;
/// So much of a reply's text is looked at, in whole lines.
const TEXT_READ: usize = 1500;
/// Room that is made for one read.
const READ_SIZE: usize = 4096;

/// Why bytes are no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// A line does not start with a code from 200 to 599.
    #[error("the relay sent something that is no SMTP reply")]
    NoCode,
    /// A line is longer than 8 KiB.
    #[error("the relay sent a line without end")]
    LongLine,
    /// A reply has more than 128 lines or 64 KiB.
    #[error("the relay sent a reply without end")]
    LongReply,
    /// Lines of one reply say yes, others no.
    #[error("the relay sent a reply that says both yes and no")]
    MixedCodes,
    /// There are bytes that nobody asked for.
    #[error("the relay sent a reply that was not asked for")]
    Surplus,
}

/// An enhanced status code (RFC 3463), for example 5.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What a server said. Its text is the server's: it may repeat the recipient's address.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The enhanced status code, where there was one.
    pub enhanced: Option<EnhancedCode>,
    /// The text without codes, its lines joined by blanks; what is beyond some 1,500 bytes is left out.
    pub text: String,
    /// Its text may repeat credentials: it is not shown.
    pub(crate) is_secret: bool,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        if self.is_secret || self.text.is_empty() { Ok(()) } else { write!(f, " {}", self.text) }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({self})")
    }
}

/// A whole reply. Its text stays in the [`SmtpReplies`] it came from, until the next bytes are added there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmtpReply {
    /// 200 to 599.
    pub code: u16,
    /// It has no end: what follows cannot be told from it.
    pub is_cut: bool,
    start: usize,
    end: usize,
}

impl SmtpReply {
    /// 2xx: done as asked.
    pub fn is_positive(self) -> bool {
        (200..300).contains(&self.code)
    }
}

/// What was read from a connection and not yet understood.
#[derive(Debug, Default)]
pub struct SmtpReplies {
    buffer: Vec<u8>,
    /// Where the reply that is being read starts.
    start: usize,
    /// Where its first line starts that was not seen whole.
    line: usize,
    /// Up to where that line was searched for its end.
    searched: usize,
    /// Where the bytes that were read end.
    end: usize,
    lines: usize,
    code: Option<u16>,
    /// A reply without end was taken: whatever comes belongs to it.
    is_lost: bool,
}

impl SmtpReplies {
    /// Room for the next bytes, never empty. Tell [`Self::filled`] how many came.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.line -= self.start;
            self.searched -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ_SIZE / 2 {
            self.buffer.resize(self.end + READ_SIZE, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of [`Self::spare`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// True when every byte that came belonged to a reply that was taken.
    pub fn is_empty(&self) -> bool {
        self.start == self.end && !self.is_lost
    }

    /// The next reply, once all of it is there. After an error there is no next one.
    pub fn take(&mut self) -> Result<Option<SmtpReply>, Garbage> {
        if self.is_lost {
            return Err(Garbage::LongReply);
        }
        while let Some(found) = memchr(b'\n', &self.buffer[self.searched..self.end]) {
            let end = self.searched + found + 1;
            if end - self.line > LINE_MAX {
                return self.cut(Garbage::LongLine);
            }
            let (code, is_last) = parse_line(line_of(&self.buffer[self.line..end]))?;
            let code = self.code.map_or(Ok(code), |first| merged(first, code))?;
            self.lines += 1;
            if self.lines > LINES_MAX || end - self.start > REPLY_MAX {
                return self.cut(Garbage::LongReply);
            }
            self.line = end;
            self.searched = end;
            if is_last {
                let reply = SmtpReply { code, is_cut: false, start: self.start, end };
                self.start = end;
                self.lines = 0;
                self.code = None;
                return Ok(Some(reply));
            }
            self.code = Some(code);
        }
        self.searched = self.end;
        if self.end - self.line > LINE_MAX {
            return self.cut(Garbage::LongLine);
        }
        if self.end - self.start > REPLY_MAX {
            return self.cut(Garbage::LongReply);
        }
        Ok(None)
    }

    /// A reply without end, as far as it was understood; an error where nothing was.
    fn cut(&mut self, otherwise: Garbage) -> Result<Option<SmtpReply>, Garbage> {
        let last = parse_line(&self.buffer[self.line..self.end]).map(|(code, _)| code);
        let code = match (self.code, last) {
            (Some(first), Ok(code)) => merged(first, code)?,
            (None, Ok(code)) => code,
            _ => return Err(otherwise),
        };
        self.is_lost = true;
        let reply = SmtpReply { code, is_cut: true, start: self.start, end: self.end };
        self.start = self.end;
        Ok(Some(reply))
    }

    /// The texts of a reply's lines, without codes and line ends.
    pub fn texts(&self, reply: SmtpReply) -> impl Iterator<Item = &[u8]> {
        self.buffer[reply.start..reply.end]
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| line_of(line).get(3..).unwrap_or_default())
            .map(|text| text.strip_prefix(b" ").or_else(|| text.strip_prefix(b"-")).unwrap_or(text))
    }

    /// The reply in a form that outlives the buffer.
    pub fn owned(&self, reply: SmtpReply) -> Reply {
        let (enhanced, text) = self.words(reply);
        Reply { code: reply.code, enhanced, text: text.into_owned(), is_secret: false }
    }

    /// The enhanced code, taken from the first line that has one, and the text without it.
    fn words(&self, reply: SmtpReply) -> (Option<EnhancedCode>, Cow<'_, str>) {
        let mut enhanced = None;
        let mut text = Cow::Borrowed("");
        for line in self.texts(reply) {
            let (code, line) = split_enhanced(line);
            enhanced = enhanced.or(code);
            let line = String::from_utf8_lossy(line);
            if text.is_empty() {
                text = line;
            } else {
                let text = text.to_mut();
                text.push(' ');
                text.push_str(&line);
            }
            // Whole lines only: half an address would pass for a word.
            if text.len() > TEXT_READ {
                break;
            }
        }
        (enhanced.or_else(|| enhanced_within(&text)), text)
    }
}

/// `line` without its end. A bare LF ends a line too: servers that send it exist, and nothing is gained by refusing them.
fn line_of(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The code, and whether this is the reply's last line.
fn parse_line(line: &[u8]) -> Result<(u16, bool), Garbage> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else { return Err(Garbage::NoCode) };
    let code = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    match rest.first() {
        None | Some(b' ') => Ok((code, true)),
        Some(b'-') => Ok((code, false)),
        Some(digit) if digit.is_ascii_digit() => Err(Garbage::NoCode),
        // `250Ok`
        Some(_) => Ok((code, true)),
    }
}

/// The code of a reply whose lines bear these two.
fn merged(first: u16, next: u16) -> Result<u16, Garbage> {
    match (first / 100, next / 100) {
        (one, other) if one == other => Ok(next),
        (4, 5) => Ok(first),
        (5, 4) => Ok(next),
        _ => Err(Garbage::MixedCodes),
    }
}

/// `(#5.7.1)`, as qmail has it.
fn enhanced_within(text: &str) -> Option<EnhancedCode> {
    let (_, rest) = text.split_once("(#")?;
    let (code, _) = rest.split_once(')')?;
    split_enhanced(code.as_bytes()).0
}

/// Splits an enhanced status code (RFC 3463: `class.subject.detail`) off the start of a text.
fn split_enhanced(text: &[u8]) -> (Option<EnhancedCode>, &[u8]) {
    let end = memchr(b' ', text).unwrap_or(text.len());
    let mut parts = text[..end].split(|byte| *byte == b'.').map(number);
    let code = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Some(class @ (2 | 4 | 5))), Some(Some(subject)), Some(Some(detail)), None) =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "2, 4 or 5")]
            Some(EnhancedCode(class as u8, subject, detail))
        }
        _ => None,
    };
    if code.is_some() { (code, text[end..].trim_ascii_start()) } else { (None, text) }
}

/// One to three digits.
fn number(digits: &[u8]) -> Option<u16> {
    let fits = (1..=3).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    fits.then(|| digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
