//! Job documents from a file or standard input: one document however it is laid out, a list of them, or one a line.

use std::{
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
};

use anyhow::Context as _;
use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, wire};
use serde::de::IgnoredAny;
use serde_json::Deserializer;
use tokio::sync::mpsc;

use crate::message;

/// Longest file that is no file of lines, in jobs of the largest size.
const JOBS_MAX: usize = 32;

/// Documents that are read ahead.
const AHEAD_MAX: usize = 64;

/// A document, or why there is none at that place.
pub(super) struct Document {
    /// The line that it begins in, from 1.
    pub(super) line: u64,
    /// The job, or what is wrong with it.
    pub(super) job: Result<Job, String>,
}

impl Document {
    /// The job, and the bytes of its message, which is made to see whether it can be.
    pub(super) fn made(&self, now: Timestamp) -> Result<(&Job, usize), String> {
        let job = self.job.as_ref().map_err(Clone::clone)?;
        let made = message::compose(job, now).map_err(|error| error.to_string())?;
        Ok((job, made.message.len()))
    }
}

/// Documents in their order.
pub(super) struct Documents {
    reader: Box<dyn BufRead + Send>,
    limits: JobLimits,
    line: u64,
    /// What was read already and is no line by itself.
    whole: std::vec::IntoIter<Document>,
    is_begun: bool,
}

/// Opens a file; `-` is standard input.
pub(super) fn open(file: &Path, limits: JobLimits) -> anyhow::Result<Documents> {
    let reader: Box<dyn BufRead + Send> = if file == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(std::fs::File::open(file).with_context(|| file.display().to_string())?))
    };
    Ok(Documents::new(reader, limits))
}

impl Documents {
    fn new(reader: Box<dyn BufRead + Send>, limits: JobLimits) -> Self {
        Self { reader, limits, line: 0, whole: Vec::new().into_iter(), is_begun: false }
    }

    /// The next one; nothing at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Document>> {
        loop {
            if let Some(document) = self.whole.next() {
                return Ok(Some(document));
            }
            let Some(line) = next_line(&mut self.reader, self.limits.bytes_max)? else { return Ok(None) };
            self.line += 1;
            let text = match line {
                Ok(text) => text,
                Err(reason) => return Ok(Some(Document { line: self.line, job: Err(reason) })),
            };
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let is_first = !std::mem::replace(&mut self.is_begun, true);
            if is_first && begins_more(&text) {
                let mut all = text;
                let most = self.limits.bytes_max.saturating_mul(JOBS_MAX);
                (&mut self.reader).take(most as u64 + 1).read_to_end(&mut all)?;
                let list = if all.len() > most {
                    let reason = "the file is too large for a list; write one document a line".to_owned();
                    vec![Document { line: self.line, job: Err(reason) }]
                } else {
                    split(&all, self.line).into_iter().map(|(line, text)| self.read(line, text)).collect()
                };
                self.whole = list.into_iter();
                continue;
            }
            return Ok(Some(self.read(self.line, Ok(&text))));
        }
    }

    /// Reads in a thread of its own: what is under way goes on while whoever writes takes his time.
    pub(super) fn apart(mut self) -> mpsc::Receiver<io::Result<Document>> {
        let (sender, receiver) = mpsc::channel(AHEAD_MAX);
        std::thread::spawn(move || {
            while let Some(document) = self.next().transpose() {
                let is_last = document.is_err();
                // Nobody wants more where the command ended.
                if sender.blocking_send(document).is_err() || is_last {
                    return;
                }
            }
        });
        receiver
    }

    fn read(&self, line: u64, text: Result<&[u8], String>) -> Document {
        let job = text.and_then(|text| {
            let job = wire::decode_v1(text).and_then(|job| job.parse(&self.limits));
            job.map_err(|error| error.to_string())
        });
        Document { line, job }
    }
}

/// Whether the first line belongs together with the next ones: a list, a document over several lines, another encoding.
fn begins_more(line: &[u8]) -> bool {
    if line.starts_with(&[0xff, 0xfe]) || line.starts_with(&[0xfe, 0xff]) {
        return true;
    }
    let line = without_mark(line);
    line.trim_ascii_start().starts_with(b"[")
        || serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| error.is_eof())
}

/// A byte order mark is no part of the text.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// The documents of a text, those of lists one by one, each with its line. Behind what is no JSON nothing is looked for.
fn split(text: &[u8], first: u64) -> Vec<(u64, Result<&[u8], String>)> {
    if text.starts_with(&[0xff, 0xfe]) || text.starts_with(&[0xfe, 0xff]) {
        return vec![(first, Ok(text))];
    }
    let text = without_mark(text);
    let line_at = |place: usize| first + text[..place].split(|byte| *byte == b'\n').count() as u64 - 1;
    let (mut found, mut place, mut in_list) = (Vec::new(), 0, false);
    while let Some(byte) = text.get(place) {
        match byte {
            byte if byte.is_ascii_whitespace() => place += 1,
            b',' if in_list => place += 1,
            b']' if in_list => (in_list, place) = (false, place + 1),
            b'[' if !in_list => (in_list, place) = (true, place + 1),
            _ => {
                let mut documents = Deserializer::from_slice(&text[place..]).into_iter::<IgnoredAny>();
                match documents.next() {
                    Some(Ok(_)) => {
                        let end = place + documents.byte_offset();
                        found.push((line_at(place), Ok(&text[place..end])));
                        place = end;
                    }
                    Some(Err(error)) => {
                        let line = line_at(place) + (error.line() as u64).saturating_sub(1);
                        let reason = if error.is_eof() { "the document has no end" } else { "not valid JSON" };
                        found.push((line, Err(format!("{reason} (column {})", error.column()))));
                        return found;
                    }
                    None => return found,
                }
            }
        }
    }
    found
}

/// Reads a line into a bounded buffer; what is too long is skipped up to its end.
fn next_line(reader: &mut dyn BufRead, bytes_max: usize) -> io::Result<Option<Result<Vec<u8>, String>>> {
    let mut text = Vec::new();
    if (&mut *reader).take(bytes_max as u64 + 1).read_until(b'\n', &mut text)? == 0 {
        return Ok(None);
    }
    if text.len() <= bytes_max || text.ends_with(b"\n") {
        return Ok(Some(Ok(text)));
    }
    loop {
        let chunk = reader.fill_buf()?;
        let (used, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(place) => (place + 1, true),
            None => (chunk.len(), chunk.is_empty()),
        };
        reader.consume(used);
        if ended {
            return Ok(Some(Err(format!("longer than the {bytes_max} bytes that a job may have"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use postrider_schemas::examples;

    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut documents = Documents::new(Box::new(Cursor::new(text.to_vec())), JobLimits::DEFAULT);
        let mut found = Vec::new();
        while let Some(one) = documents.next().unwrap() {
            found.push((one.line, one.job.map(|job| job.id().to_string())));
        }
        found
    }

    #[test]
    fn one_document_a_list_and_lines_are_read() {
        let (one, two) = (examples::ALL[0].1, examples::ALL[1].1);
        let id = |text: &str| wire::decode_v1(text.as_bytes()).unwrap().id.unwrap().to_string();
        let line = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap().to_string();
        let both = [Ok(id(one)), Ok(id(two))];
        let jobs = |text: &str| lines(text.as_bytes()).into_iter().map(|(_, job)| job).collect::<Vec<_>>();
        assert_eq!(lines(one.as_bytes()), [(1, Ok(id(one)))], "a document over several lines");
        assert_eq!(lines(format!("\u{feff}{one}").as_bytes()), [(1, Ok(id(one)))]);
        assert_eq!(jobs(&format!("{one}\n{two}")), both, "documents one after the other");
        assert_eq!(jobs(&format!("[{one},\n{two}]\n")), both);
        assert_eq!(jobs(&format!("[{},{}]", line(one), line(two))), both);
        let mixed = format!("{}\n\nnot json\n{}", line(one), line(two));
        let found = lines(mixed.as_bytes());
        assert_eq!(
            found.iter().map(|(line, job)| (*line, job.is_ok())).collect::<Vec<_>>(),
            [(1, true), (3, false), (4, true)]
        );
        let cut = lines(&one.as_bytes()[..one.len() / 2]);
        assert!(cut[0].1.as_ref().is_err_and(|reason| reason.contains("no end")), "{cut:?}");
        assert!(lines(b"\n \n").is_empty());
    }
}
