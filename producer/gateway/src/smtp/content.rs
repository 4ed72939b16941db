//! Reads what follows DATA or BDAT. Pure: bytes in, a message out.
//!
//! DATA ends with CR LF, a dot, CR LF and nothing else. A lone CR or LF refuses the message, however it came: servers that disagree about what ends a
//! line can be made to see a second message in the first one ("SMTP smuggling").

use memchr::{memchr, memchr2_iter};

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoiled {
    /// It is larger than allowed.
    TooLarge,
    /// A CR without LF, or a LF without CR.
    LoneLineEnd,
    /// There is no memory for it now.
    NoMemory,
}

/// What has been read so far of a message. One that is spoiled is read to its end and let go.
#[derive(Debug)]
pub struct Content {
    message: Vec<u8>,
    max: usize,
    spoiled: Option<Spoiled>,
    ends_in_cr: bool,
}

impl Content {
    /// A message of at most so many octets.
    pub fn new(max: usize) -> Self {
        Self { message: Vec::new(), max, spoiled: None, ends_in_cr: false }
    }

    /// Octets that it holds.
    pub fn len(&self) -> usize {
        self.message.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.message.is_empty()
    }

    /// Takes octets of the message.
    pub fn push(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        if !are_line_ends_whole(self.ends_in_cr, bytes) {
            self.spoil(Spoiled::LoneLineEnd);
        }
        self.ends_in_cr = *last == b'\r';
        if self.message.len() + bytes.len() > self.max {
            self.spoil(Spoiled::TooLarge);
        }
        if self.spoiled.is_none() {
            self.message.extend_from_slice(bytes);
        }
    }

    /// Lets go of what was read, and of all that follows. The first reason counts.
    pub fn spoil(&mut self, reason: Spoiled) {
        self.message = Vec::new();
        self.spoiled.get_or_insert(reason);
    }

    /// The message.
    pub fn finish(mut self) -> Result<Vec<u8>, Spoiled> {
        if self.ends_in_cr {
            self.spoil(Spoiled::LoneLineEnd);
        }
        self.spoiled.map_or(Ok(self.message), Err)
    }
}

/// Whether each LF follows a CR, and whatever follows a CR is a LF. A CR at the end is not judged yet.
fn are_line_ends_whole(is_after_cr: bool, bytes: &[u8]) -> bool {
    if is_after_cr && bytes.first() != Some(&b'\n') {
        return false;
    }
    memchr2_iter(b'\r', b'\n', bytes).all(|at| match bytes[at] {
        b'\n' => at.checked_sub(1).map_or(is_after_cr, |before| bytes[before] == b'\r'),
        _ => bytes.get(at + 1).is_none_or(|next| *next == b'\n'),
    })
}

/// Finds the end of DATA, and takes away the dots that were put in front of dots.
#[derive(Debug, Default)]
pub struct Dots(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// At the beginning of a line.
    #[default]
    Start,
    /// Within a line.
    Line,
    /// Behind a CR within a line.
    Cr,
    /// Behind a dot at the beginning of a line.
    Dot,
    /// Behind the CR of a line that is a dot.
    DotCr,
}

impl Dots {
    /// Takes bytes. Gives how many of them belong to the message, once its end is among them; what follows are commands.
    pub fn feed(&mut self, bytes: &[u8], content: &mut Content) -> Option<usize> {
        // What stands before it was handed over, or is a dot that does not count.
        let mut from = 0;
        let mut at = 0;
        while at < bytes.len() {
            self.0 = match (self.0, bytes[at]) {
                (State::DotCr, b'\n') => return Some(at + 1),
                (State::DotCr, byte) => {
                    // The line was more than a dot: its CR stands within it.
                    content.push(b"\r");
                    from = at;
                    within(byte)
                }
                (State::Dot, b'\r') => {
                    from = at + 1;
                    State::DotCr
                }
                (State::Dot, byte) => {
                    from = at;
                    within(byte)
                }
                (State::Start, b'.') => {
                    content.push(&bytes[from..at]);
                    from = at + 1;
                    State::Dot
                }
                (State::Cr, b'\n') => State::Start,
                (_, b'\r') => State::Cr,
                _ => {
                    // The rest of the line is of no interest here.
                    at = memchr(b'\r', &bytes[at..]).map_or(bytes.len(), |length| at + length);
                    self.0 = State::Line;
                    continue;
                }
            };
            at += 1;
        }
        content.push(&bytes[from..]);
        None
    }
}

fn within(byte: u8) -> State {
    if byte == b'\r' { State::Cr } else { State::Line }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = (Result<Vec<u8>, Spoiled>, Vec<u8>);

    /// A message and what follows it, fed in pieces of this size.
    fn read_in_pieces(bytes: &[u8], size: usize, max: usize) -> Read {
        let (mut dots, mut content) = (Dots::default(), Content::new(max));
        let mut end = bytes.len();
        for (n, piece) in bytes.chunks(size).enumerate() {
            if let Some(used) = dots.feed(piece, &mut content) {
                end = n * size + used;
                break;
            }
        }
        (content.finish(), bytes[end..].to_vec())
    }

    /// Fed in pieces of every size, with one outcome.
    fn read(text: &str) -> (Result<String, Spoiled>, String) {
        let mut outcomes: Vec<Read> = (1..=text.len()).map(|size| read_in_pieces(text.as_bytes(), size, 64)).collect();
        outcomes.dedup();
        assert_eq!(outcomes.len(), 1, "{text:?}: {outcomes:?}");
        let (message, rest) = outcomes.remove(0);
        (message.map(|bytes| String::from_utf8(bytes).unwrap()), String::from_utf8(rest).unwrap())
    }

    fn taken(message: &str, rest: &str) -> (Result<String, Spoiled>, String) {
        (Ok(message.to_owned()), rest.to_owned())
    }

    #[test]
    fn a_message_ends_with_a_dot_on_a_line_of_its_own() {
        assert_eq!(read("A: b\r\n\r\nc\r\n.\r\nQUIT\r\n"), taken("A: b\r\n\r\nc\r\n", "QUIT\r\n"));
        assert_eq!(read(".\r\nRSET\r\n"), taken("", "RSET\r\n"));
        assert_eq!(read("..a\r\n...\r\n.\r\n"), taken(".a\r\n..\r\n", ""));
        assert_eq!(read(".a\r\nb.\r\n.\r\n"), taken("a\r\nb.\r\n", ""));
    }

    #[test]
    fn ways_to_smuggle_a_second_message_spoil_the_first() {
        for text in
            ["a\n.\n", "a\n.\r\n", "a\r.\r", "a\r\n.\n", "a\r\n.\r", "a\r.\r\n", "a\nb", "\n.\r\n", "a\r\n.\r\r\n"]
        {
            let whole = format!("{text}MAIL FROM:<x@y.example>\r\n.\r\n");
            assert_eq!(read(&whole), (Err(Spoiled::LoneLineEnd), String::new()), "{text:?}");
        }
        for chunk in ["a\nb\r\n", "a\rb\r\n", "a\r\nb\r", "\n"] {
            let mut content = Content::new(64);
            content.push(chunk.as_bytes());
            assert_eq!(content.finish(), Err(Spoiled::LoneLineEnd), "{chunk:?}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_read_to_its_end() {
        let text = format!("{}\r\n.\r\nQUIT\r\n", "x".repeat(70));
        assert_eq!(read(&text), (Err(Spoiled::TooLarge), "QUIT\r\n".to_owned()));
    }

    proptest! {
        #[test]
        fn what_a_client_stuffs_comes_out_as_it_was(
            lines in prop::collection::vec("[.a-c]{0,4}", 0..8),
            rest in "[.A-Z\r\n]{0,9}",
            size in 1_usize..20,
        ) {
            let (mut message, mut stuffed) = (String::new(), String::new());
            for line in lines {
                message = message + &line + "\r\n";
                stuffed = stuffed + if line.starts_with('.') { "." } else { "" } + &line + "\r\n";
            }
            let sent = format!("{stuffed}.\r\n{rest}");
            let (read, after) = read_in_pieces(sent.as_bytes(), size, 1000);
            prop_assert_eq!(read, Ok(message.into_bytes()));
            prop_assert_eq!(after, rest.into_bytes());
        }

        #[test]
        fn no_message_that_is_taken_holds_a_lone_line_end(bytes in "[.ab\r\n]{0,40}", size in 1_usize..9) {
            let (read, _) = read_in_pieces(bytes.as_bytes(), size, 1000);
            if let Ok(message) = read {
                prop_assert!(are_line_ends_whole(false, &message), "{message:?}");
                prop_assert!(!message.windows(5).any(|window| window == b"\r\n.\r\n") || bytes.contains("\r\n..\r\n"));
            }
        }
    }
}
