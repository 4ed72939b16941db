//! The render process: bounds itself, then renders what comes on its standard input until that ends. It is given no environment, writes no log, and
//! leaves no core file: what it renders is personal data.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
    thread,
};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::wire::{GREETING, HEAD, Head, Texts, encode};
use crate::message::template::{self, Fault, Part, Sources};

/// Memory that a process may write to, in octets, its stack included.
pub(super) const MEMORY_MAX: u64 = 160 * 1024 * 1024;
/// Address space, for systems that do not count the former.
const ADDRESSES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// How deep the engine may call itself: the bounds on sources are far below.
const STACK: usize = 32 * 1024 * 1024;
/// Processor time of one template: between so many seconds and one more.
pub(super) const SECONDS_MAX: u64 = 1;

/// Serves until standard input ends.
pub fn serve() -> ExitCode {
    let serving = thread::Builder::new().stack_size(STACK).spawn(|| {
        bound()?;
        serve_all(&mut io::stdin().lock(), &mut io::stdout().lock())
    });
    match serving.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(_))) | Err(_) => ExitCode::FAILURE,
        // As a panic of the first thread would end it.
        Ok(Err(_)) => ExitCode::from(101),
    }
}

fn bound() -> io::Result<()> {
    limit(Resource::Core, 0)?;
    limit(Resource::Data, MEMORY_MAX)?;
    limit(Resource::As, ADDRESSES_MAX)?;
    // Where the system runs short of memory all the same, this process goes first. Not everywhere is there such a file.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    Ok(setrlimit(resource, Rlimit { current: lower(current), maximum: lower(maximum) })?)
}

/// The system ends the process that uses more than this from now on.
fn limit_time() -> io::Result<()> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = u64::try_from(used.tv_sec).unwrap_or_default() + u64::from(used.tv_nsec > 0);
    let maximum = getrlimit(Resource::Cpu).maximum;
    let current = used + SECONDS_MAX;
    Ok(setrlimit(Resource::Cpu, Rlimit { current: Some(maximum.map_or(current, |most| most.min(current))), maximum })?)
}

fn serve_all(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    output.write_all(&GREETING)?;
    output.flush()?;
    loop {
        let mut head = [0; HEAD];
        match input.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let head = Head::read(head).ok_or(io::ErrorKind::InvalidData)?;
        let mut texts = vec![0; head.octets()];
        input.read_exact(&mut texts)?;
        limit_time()?;
        let answer = answer(&head.texts(texts))?;
        output.write_all(&answer)?;
        output.flush()?;
    }
}

fn text(text: Option<&Vec<u8>>) -> io::Result<Option<&str>> {
    text.map(|text| std::str::from_utf8(text)).transpose().map_err(io::Error::other)
}

/// Renders subject, text and HTML with the variables behind them.
fn answer(question: &Texts) -> io::Result<Vec<u8>> {
    let [subject, body, html, variables] = question;
    let (subject, body, html) = (text(subject.as_ref())?, text(body.as_ref())?, text(html.as_ref())?);
    let variables = serde_json::from_slice(variables.as_deref().unwrap_or(b"{}"))?;
    match template::texts(&Sources { subject: subject.unwrap_or_default(), text: body, html }, &variables) {
        Ok(texts) => {
            let of = |text: &Option<String>| text.as_ref().map(|text| text.clone().into_bytes());
            let (text, html) = (of(&texts.text), of(&texts.html));
            Ok(encode([None, Some(texts.subject.as_bytes()), text.as_deref(), html.as_deref()]))
        }
        Err(fault) => Ok(encode([Some(&serde_json::to_vec(&fault)?), None, None, None])),
    }
}

/// What a process answered: texts, or what is wrong with the template. Nothing where it is no answer.
pub(super) fn read(answer: Texts) -> Option<Result<template::Texts, Fault>> {
    let text = |text: Option<Vec<u8>>| text.map(String::from_utf8).transpose().ok();
    match answer {
        [Some(fault), ..] => Some(Err(serde_json::from_slice(&fault).ok()?)),
        [None, subject, body, html] => {
            Some(Ok(template::Texts { subject: text(subject)??, text: text(body)?, html: text(html)? }))
        }
    }
}

/// A fault that no template is named in.
pub(super) fn limit_fault(reason: &str) -> Fault {
    Fault::Limit { part: None::<Part>, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(subject: &str, variables: &str) -> Option<Result<template::Texts, Fault>> {
        let mut input =
            io::Cursor::new(encode([Some(subject.as_bytes()), Some(b"t {{ a }}"), None, Some(variables.as_bytes())]));
        let mut output = Vec::new();
        // Without the limits: this process is not to have them.
        let mut head = [0; HEAD];
        input.read_exact(&mut head).unwrap();
        let head = Head::read(head).unwrap();
        let mut texts = Vec::new();
        input.read_to_end(&mut texts).unwrap();
        output.extend(answer(&head.texts(texts)).unwrap());
        let head = Head::read(output[..HEAD].try_into().unwrap()).unwrap();
        read(head.texts(output[HEAD..].to_vec()))
    }

    #[test]
    fn texts_and_faults_arrive_as_they_are() {
        let texts = asked("s {{ a }}", r#"{"a": "é"}"#).unwrap().ok().unwrap();
        assert_eq!((texts.subject.as_str(), texts.text.as_deref(), texts.html), ("s é", Some("t é"), None));
        let fault = asked("s {{ b }}", r#"{"a": 1}"#).unwrap().err().unwrap();
        assert!(matches!(fault, Fault::Source { part: Part::Subject, line: Some(1), .. }), "{fault:?}");
    }
}
