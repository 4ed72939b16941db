//! The message as it goes over the wire after DATA: every line ends in CRLF, no line starts with a bare dot. Borrows the
//! message where it is already in order, which is nearly always. Writes nothing.

use std::borrow::Cow;

use memchr::memchr2_iter;

/// A message ready for the wire: `bytes`, then `tail`.
#[derive(Debug)]
pub struct Body<'a> {
    /// The message, dots doubled at the start of lines.
    pub bytes: Cow<'a, [u8]>,
    /// The final dot, after a line end where the message lacks one.
    pub tail: &'static [u8],
    /// The size for the SIZE parameter, in octets: line ends included, doubled dots and the final dot not (RFC 1870).
    pub size: u64,
    /// Some octet is above 127.
    pub eight_bit: bool,
}

impl<'a> Body<'a> {
    /// Prepares `message`. A lone CR or LF becomes CRLF: what one server takes for a line end and the next one does not
    /// is how a message smuggles another one past a relay.
    pub fn new(message: &'a [u8]) -> Self {
        let eight_bit = !message.is_ascii();
        let (bytes, doubled) = if is_in_order(message) {
            (Cow::Borrowed(message), 0)
        } else {
            let (bytes, doubled) = put_in_order(message);
            (Cow::Owned(bytes), doubled)
        };
        let tail: &[u8] = if bytes.is_empty() || bytes.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" };
        let size = (bytes.len() - doubled + tail.len() - b".\r\n".len()) as u64;
        Self { bytes, tail, size, eight_bit }
    }
}

/// True where some octet in front of the first empty line is above 127: the message then needs SMTPUTF8.
pub fn has_eight_bit_header(message: &[u8]) -> bool {
    let end = memchr::memmem::find(message, b"\r\n\r\n").unwrap_or(message.len());
    !message[..end].is_ascii()
}

fn is_in_order(message: &[u8]) -> bool {
    message.first() != Some(&b'.')
        && memchr2_iter(b'\r', b'\n', message).all(|at| {
            let next = message.get(at + 1);
            if message[at] == b'\r' {
                next == Some(&b'\n')
            } else {
                at > 0 && message[at - 1] == b'\r' && next != Some(&b'.')
            }
        })
}

/// The message with its lines in order, and how many dots were added.
fn put_in_order(message: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::with_capacity(message.len() + message.len() / 32 + 16);
    let mut doubled = 0;
    let mut rest = message;
    while !rest.is_empty() {
        if rest[0] == b'.' {
            out.push(b'.');
            doubled += 1;
        }
        let Some(end) = memchr::memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            break;
        };
        out.extend_from_slice(&rest[..end]);
        out.extend_from_slice(b"\r\n");
        rest = &rest[end + if rest[end..].starts_with(b"\r\n") { 2 } else { 1 }..];
    }
    (out, doubled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(message: &str, wire: &str, size: u64) {
        let body = Body::new(message.as_bytes());
        assert_eq!(String::from_utf8([&body.bytes, body.tail].concat()).unwrap(), wire);
        assert_eq!(body.size, size);
    }

    #[test]
    fn a_message_in_order_is_not_copied() {
        let body = Body::new(b"Subject: x\r\n\r\na.b\r\n");
        assert!(matches!(body.bytes, Cow::Borrowed(_)));
        check("Subject: x\r\n\r\na.b\r\n", "Subject: x\r\n\r\na.b\r\n.\r\n", 19);
    }

    #[test]
    fn dots_at_the_start_of_a_line_are_doubled_and_not_counted() {
        check(".\r\n", "..\r\n.\r\n", 3);
        check("a\r\n.b\r\n..\r\n", "a\r\n..b\r\n...\r\n.\r\n", 11);
        check("a\r\n.", "a\r\n..\r\n.\r\n", 6);
        check("a\n.\nb\n", "a\r\n..\r\nb\r\n.\r\n", 9);
    }

    #[test]
    fn lone_line_ends_become_whole_ones() {
        check("a\nb\rc\r\nd", "a\r\nb\r\nc\r\nd\r\n.\r\n", 12);
        check("a\r", "a\r\n.\r\n", 3);
        check("\n", "\r\n.\r\n", 2);
        check("a\r\r\nb", "a\r\n\r\nb\r\n.\r\n", 8);
    }

    #[test]
    fn an_empty_message_is_a_lone_dot() {
        check("", ".\r\n", 0);
    }

    #[test]
    fn octets_above_127_are_noticed() {
        assert!(Body::new("ü\r\n".as_bytes()).eight_bit);
        assert!(!Body::new(b"u\r\n").eight_bit);
        assert!(has_eight_bit_header("To: zoë@example.org\r\n\r\nu".as_bytes()));
        assert!(!has_eight_bit_header("To: zoe@example.org\r\n\r\nü".as_bytes()));
    }

    proptest! {
        #[test]
        fn nothing_in_a_message_ends_it_early(message in proptest::collection::vec(
            prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'a'), any::<u8>()], 0..200)) {
            let body = Body::new(&message);
            let wire = [b"\r\n", body.bytes.as_ref(), body.tail].concat();
            let first = memchr::memmem::find(&wire, b"\r\n.\r\n").unwrap();
            prop_assert_eq!(first + 5, wire.len());
            let lines: Vec<&[u8]> = wire.split(|b| *b == b'\n').collect();
            let (last, whole) = lines.split_last().unwrap();
            prop_assert!(last.is_empty());
            for line in whole {
                prop_assert_eq!(memchr::memchr(b'\r', line), Some(line.len() - 1));
            }
        }

        #[test]
        fn a_server_that_undoes_the_doubling_gets_what_was_sent(lines in proptest::collection::vec("[.a-c]{0,4}", 0..20)) {
            let message = lines.iter().fold(String::new(), |text, line| text + line + "\r\n");
            let body = Body::new(message.as_bytes());
            let wire = String::from_utf8([&body.bytes, body.tail].concat()).unwrap();
            let mut seen = String::new();
            for line in wire.split_terminator("\r\n").take_while(|line| *line != ".") {
                seen += line.strip_prefix('.').unwrap_or(line);
                seen += "\r\n";
            }
            prop_assert_eq!(&seen, &message);
            prop_assert_eq!(body.size, message.len() as u64);
        }
    }
}
