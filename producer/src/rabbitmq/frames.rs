//! Makes every message that a broker delivers one that the AMQP library can read.
//!
//! The library ends the whole connection over a content header that is larger than the negotiated `frame_max`, and over names that are
//! not UTF-8. A broker checks neither: it adds headers of its own to a message (`x-delivery-count`), and no content header can be cut
//! into frames. One such message would take out a consumer, with every queue of its connection, for as long as it is at a queue's head.
//!
//! So frames are looked at before the library sees them. A content header that it could not read keeps its properties and our own headers;
//! where that is not possible either it keeps nothing. Either way [`CUT_HEADER`] says so. Pure: octets in, octets out.

use std::io;

use amq_protocol::{
    frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame},
    protocol::BasicProperties,
    types::{AMQPValue, FieldTable, LongString},
};

/// Stands among the headers of a message that could not be read whole; the value says why. [`CUT_ALL`] in front: nothing was kept.
pub const CUT_HEADER: &str = "postrider-headers-cut";
/// The beginning of the value of [`CUT_HEADER`] where neither properties nor headers of ours could be kept.
pub const CUT_ALL: &str = "all:";

const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// Type, channel and size.
const PREFIX: usize = 7;
/// The octet at the end.
const SUFFIX: usize = 1;
/// No frame that is looked at may be larger: who sends such a thing is no broker.
const FRAME_MAX: usize = 64 << 20;
const TUNE: [u8; 4] = [0, 10, 0, 30];
/// The methods with names that a publisher chose: return, deliver, get-ok.
const NAMED: [[u8; 4]; 3] = [[0, 60, 0, 50], [0, 60, 0, 60], [0, 60, 0, 71]];

/// Looks at one connection's frames in the order in which they come.
#[derive(Debug, Default)]
pub struct Filter {
    /// What the library asked for; 0 is no wish.
    wanted: usize,
    /// What it takes; 0 until the broker said so.
    frame_max: usize,
    /// The beginning of a frame that is not whole yet.
    begun: Vec<u8>,
    /// Octets of a frame that is not looked at which are yet to come.
    passing: usize,
    /// What comes is no AMQP frame: the broker's answer to another version.
    is_raw: bool,
}

impl Filter {
    /// A filter for a connection that asks for this `frame_max`.
    pub fn new(wanted: Option<u32>) -> Self {
        Self { wanted: wanted.map_or(0, |size| size as usize), ..Self::default() }
    }

    /// Takes what was read and appends what the library may see.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            if self.is_raw {
                out.extend_from_slice(input);
                return Ok(());
            }
            if self.passing > 0 {
                let (now, later) = input.split_at(self.passing.min(input.len()));
                out.extend_from_slice(now);
                self.passing -= now.len();
                input = later;
                continue;
            }
            input = self.fill(input, PREFIX);
            let Some(size) = self.begun.get(3..PREFIX) else { return Ok(()) };
            let size = size.iter().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
            let whole = PREFIX + size + SUFFIX;
            if !matches!(self.begun[0], METHOD | HEADER) {
                self.is_raw = self.begun[0] == b'A';
                self.passing = whole - PREFIX;
                out.append(&mut self.begun);
                continue;
            }
            if whole > FRAME_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {whole} octets")));
            }
            input = self.fill(input, whole);
            if self.begun.len() == whole {
                self.looked_at(out);
            }
        }
        Ok(())
    }

    /// Moves octets until `self.begun` has this many, as far as there are any.
    fn fill<'a>(&mut self, input: &'a [u8], whole: usize) -> &'a [u8] {
        let missing = whole.saturating_sub(self.begun.len()).min(input.len());
        let (now, later) = input.split_at(missing);
        self.begun.extend_from_slice(now);
        later
    }

    fn looked_at(&mut self, out: &mut Vec<u8>) {
        let is_method = self.begun[0] == METHOD;
        let kind = self.begun.get(PREFIX..PREFIX + 4);
        if is_method && kind == Some(&TUNE) {
            let theirs = self.begun.get(PREFIX + 6..PREFIX + 10).unwrap_or_default();
            let theirs = theirs.iter().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
            // The smaller one, where both have a wish.
            self.frame_max = [theirs, self.wanted].into_iter().filter(|size| *size > 0).min().unwrap_or(0);
        } else if is_method && kind.is_some_and(|kind| NAMED.iter().any(|one| one == kind)) {
            if std::str::from_utf8(&self.begun).is_err() && parse_frame(&self.begun[..]).is_err() {
                legible(&mut self.begun);
            }
        } else if !is_method && !self.is_readable() {
            let cut = cut(&self.begun, self.frame_max);
            out.extend_from_slice(&cut);
            self.begun.clear();
            return;
        }
        out.append(&mut self.begun);
    }

    fn is_readable(&self) -> bool {
        (self.frame_max == 0 || self.begun.len() <= self.frame_max) && parse_frame(&self.begun[..]).is_ok()
    }
}

/// Replaces what is not ASCII in the names of a method by question marks: a routing key of ours has none.
fn legible(frame: &mut [u8]) {
    let (numbers, names) = match frame.get(PREFIX + 2..PREFIX + 4) {
        // Consumer tag, delivery tag, redelivered; exchange, routing key.
        Some([0, 60]) => (1 + usize::from(frame.get(PREFIX + 4).copied().unwrap_or(0)) + 9, 2),
        // Delivery tag, redelivered; exchange, routing key.
        Some([0, 71]) => (9, 2),
        // Reply code; reply text, exchange, routing key.
        _ => (2, 3),
    };
    let mut at = PREFIX + 4 + numbers;
    for _ in 0..names {
        let Some(length) = frame.get(at).map(|length| usize::from(*length)) else { return };
        let Some(name) = frame.get_mut(at + 1..at + 1 + length) else { return };
        name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        at += 1 + length;
    }
}

/// The same content header in a form that fits and can be read.
fn cut(frame: &[u8], frame_max: usize) -> Vec<u8> {
    let octets = frame.len();
    if let Ok((_, AMQPFrame::Header(channel, header))) = parse_frame(frame) {
        let mut headers = FieldTable::default();
        for (name, value) in
            header.properties.headers().iter().flat_map(FieldTable::inner).filter(|(name, _)| is_ours(name.as_str()))
        {
            headers.insert(name.clone(), value.clone());
        }
        mark(
            &mut headers,
            &format!("{octets} octets of headers do not fit a frame of {frame_max}; foreign ones are left out"),
        );
        let kept = AMQPContentHeader { properties: header.properties.with_headers(headers), ..header };
        let kept = encoded(&AMQPFrame::Header(channel, kept));
        if !kept.is_empty() && (frame_max == 0 || kept.len() <= frame_max) {
            return kept;
        }
    }
    let mut headers = FieldTable::default();
    mark(
        &mut headers,
        &format!(
            "{CUT_ALL} {octets} octets of headers do not fit a frame of {frame_max}, or a name in them is not UTF-8"
        ),
    );
    let number = |from: usize, to: usize| {
        frame.get(from..to).unwrap_or_default().iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let header = AMQPContentHeader {
        class_id: u16::try_from(number(PREFIX, PREFIX + 2)).unwrap_or_default(),
        body_size: number(PREFIX + 4, PREFIX + 12),
        properties: BasicProperties::default().with_headers(headers),
    };
    encoded(&AMQPFrame::Header(u16::try_from(number(1, 3)).unwrap_or_default(), header))
}

/// Headers that mean something to a worker.
fn is_ours(name: &str) -> bool {
    name.starts_with("postrider-")
        || matches!(name, "traceparent" | "tracestate" | "x-delivery-count" | "x-acquired-count")
}

fn mark(headers: &mut FieldTable, reason: &str) {
    headers.insert(CUT_HEADER.into(), AMQPValue::LongString(LongString::from(reason)));
}

/// Nothing where it cannot be written, which nothing that was read a moment before is.
fn encoded(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(Vec::new().into()).map(|written| written.into_inner().0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use amq_protocol::protocol::{AMQPClass, basic, connection};

    use super::*;

    const FRAME: u32 = 4096;

    fn tune(frame_max: u32) -> Vec<u8> {
        let tune = connection::Tune { channel_max: 2047, frame_max, heartbeat: 60 };
        encoded(&AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Tune(tune))))
    }

    fn header(names: &[(&str, usize)]) -> Vec<u8> {
        let mut headers = FieldTable::default();
        for (name, octets) in names {
            headers.insert((*name).into(), AMQPValue::LongString(LongString::from("x".repeat(*octets))));
        }
        let properties = BasicProperties::default().with_message_id("m-1".into()).with_headers(headers);
        encoded(&AMQPFrame::Header(3, AMQPContentHeader { class_id: 60, body_size: 77, properties }))
    }

    /// What the library sees of these frames, in pieces of this many octets.
    fn seen(frames: &[Vec<u8>], piece: usize) -> Vec<AMQPFrame> {
        let (mut filter, mut out) = (Filter::new(None), Vec::new());
        for part in frames.concat().chunks(piece) {
            filter.feed(part, &mut out).unwrap();
        }
        let (mut rest, mut frames) = (&out[..], Vec::new());
        while !rest.is_empty() {
            let (left, frame) = parse_frame(rest).unwrap();
            assert!(rest.len() - left.len() <= FRAME as usize, "a frame is too large");
            rest = left;
            frames.push(frame);
        }
        frames
    }

    fn properties(frame: &AMQPFrame) -> (&BasicProperties, Vec<&str>) {
        let AMQPFrame::Header(3, header) = frame else { panic!("{frame:?}") };
        assert_eq!((header.class_id, header.body_size), (60, 77));
        let names =
            header.properties.headers().iter().flat_map(FieldTable::inner).map(|(name, _)| name.as_str()).collect();
        (&header.properties, names)
    }

    #[test]
    fn what_can_be_read_passes_unchanged_however_it_is_cut() {
        let body = encoded(&AMQPFrame::Body(3, vec![0xce; 77]));
        let frames = [tune(FRAME), header(&[("x-stack", 3900)]), body, encoded(&AMQPFrame::Heartbeat)];
        for piece in [1, 2, 7, 8, 1000, 100_000] {
            let (mut filter, mut out) = (Filter::new(None), Vec::new());
            for part in frames.concat().chunks(piece) {
                filter.feed(part, &mut out).unwrap();
            }
            assert_eq!(out, frames.concat(), "in pieces of {piece}");
        }
    }

    #[test]
    fn headers_that_no_frame_holds_lose_the_foreign_ones() {
        let too_large = header(&[("x-stack", 4096), ("postrider-attempt", 1), ("x-delivery-count", 2)]);
        for piece in [1, 100_000] {
            let frames = seen(&[tune(FRAME), too_large.clone(), encoded(&AMQPFrame::Heartbeat)], piece);
            let (properties, mut names) = properties(&frames[1]);
            names.sort_unstable();
            assert_eq!(names, ["postrider-attempt", CUT_HEADER, "x-delivery-count"]);
            assert_eq!(properties.message_id().as_ref().map(lapin::types::ShortString::as_str), Some("m-1"));
            assert_eq!(frames[2], AMQPFrame::Heartbeat);
        }
    }

    #[test]
    fn what_cannot_be_read_at_all_keeps_its_body_alone() {
        let mut foreign = header(&[("naive", 5)]);
        let at = foreign.windows(5).position(|five| five == b"naive").unwrap();
        foreign[at + 2] = 0xef;
        assert!(parse_frame(&foreign[..]).is_err(), "the library cannot read it");
        for frame in [foreign, header(&[("postrider-pending", 5000)])] {
            let frames = seen(&[tune(FRAME), frame], 100_000);
            let (properties, names) = properties(&frames[1]);
            assert_eq!((names.as_slice(), properties.message_id().is_some()), ([CUT_HEADER].as_slice(), false));
            let reason = properties.headers().as_ref().and_then(|table| table.inner().get(CUT_HEADER)).cloned();
            let Some(AMQPValue::LongString(reason)) = reason else { panic!("no reason") };
            assert!(reason.to_string().starts_with(CUT_ALL), "{reason}");
        }
    }

    #[test]
    fn a_routing_key_that_is_not_utf8_becomes_legible() {
        let key = |text: &str| {
            let deliver = basic::Deliver {
                consumer_tag: "jobs".into(),
                delivery_tag: 0xff_ff,
                redelivered: false,
                exchange: "postrider.due".into(),
                routing_key: text.into(),
            };
            encoded(&AMQPFrame::Method(3, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))))
        };
        let mut frame = key("suspect.X");
        let at = frame.iter().rposition(|byte| *byte == b'X').unwrap();
        frame[at] = 0xff;
        assert!(parse_frame(&frame[..]).is_err(), "the library cannot read it");
        let frames = seen(&[tune(FRAME), frame], 100_000);
        assert_eq!(encoded(&frames[1]), key("suspect.?"));
    }

    #[test]
    fn an_answer_that_is_no_frame_passes() {
        let (mut filter, mut out) = (Filter::new(None), Vec::new());
        filter.feed(b"AMQP\0\0\x09\x01", &mut out).unwrap();
        assert_eq!(out, b"AMQP\0\0\x09\x01");
        assert!(Filter::new(None).feed(&[1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], &mut out).is_err());
    }
}
