//! The table that ships, against a corpus of replies.

use postrider_providers::reply::{ProviderReply, ReplyVerdict};

use super::shipped;
use crate::policy::outcome::{Class, EnhancedCode, Mark, Stage};

/// Stage, reply and what it is about, tab by tab: see the file. `POSTRIDER_TEST_ANSWERS` names another one.
fn corpus() -> String {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/answers_corpus.tsv");
    let file = std::env::var("POSTRIDER_TEST_ANSWERS").unwrap_or_else(|_| shipped.to_owned());
    std::fs::read_to_string(file).unwrap()
}

/// A reply as on the wire; its lines are joined by ` / `.
fn parts(reply: &str) -> (u16, Option<EnhancedCode>, String) {
    let code = reply[..3].parse().unwrap();
    let mut enhanced = None;
    let mut text = String::new();
    for line in reply.split(" / ") {
        let line = line[3..].trim_start_matches([' ', '-']);
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers: Vec<u16> = first.split('.').filter_map(|part| part.parse().ok()).collect();
        match numbers.as_slice() {
            [class @ (2 | 4 | 5), subject, detail] if first.split('.').count() == 3 => {
                enhanced = enhanced.or(Some(EnhancedCode(u8::try_from(*class).unwrap(), *subject, *detail)));
                text = format!("{text} {rest}");
            }
            _ => text = format!("{text} {line}"),
        }
    }
    (code, enhanced, text)
}

fn stage(word: &str) -> Stage {
    match word {
        "connect" => Stage::Connect,
        "hello" => Stage::Hello,
        "auth" => Stage::Auth,
        "mail" => Stage::MailFrom,
        "rcpt" => Stage::RcptTo,
        "data" => Stage::Data,
        "dot" => Stage::Body,
        "call" => Stage::Call,
        other => panic!("{other}"),
    }
}

fn fits(about: &str, class: Class) -> bool {
    let is_us = matches!(
        class,
        Class::Sender
            | Class::Config
            | Class::Throttled
            | Class::Quota
            | Class::Transient
            | Class::Unavailable
            | Class::Unsupported
    );
    about.split('|').any(|about| match about {
        "us" => is_us,
        "sender" => class == Class::Sender,
        "config" => class == Class::Config,
        "quota" => class == Class::Quota,
        "pace" => matches!(class, Class::Throttled | Class::Quota),
        "unavailable" => class == Class::Unavailable,
        "unsupported" => class == Class::Unsupported,
        "again" => class == Class::Transient,
        "recipient" => class == Class::Recipient,
        "message" => class == Class::Message,
        other => panic!("{other}"),
    })
}

#[test]
fn the_corpus_is_read_as_people_read_it() {
    let answers = shipped();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for line in corpus().lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let [at, about, reply] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("three columns: {line}") };
        let (code, enhanced, text) = parts(reply);
        let reading = answers.read(stage(at), code, enhanced, &text);
        count += 1;
        if !fits(about, reading.class) {
            wrong.push(format!(
                "{at} {reply}\n    is {about}, was read as {} by `{}`",
                reading.class.as_str(),
                reading.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 40);
}

#[test]
fn what_no_word_explains_is_marked() {
    let answers = shipped();
    let read = |stage, code, text| {
        let reading = answers.read(stage, code, None, text);
        (reading.class, reading.mark)
    };
    assert_eq!(read(Stage::RcptTo, 550, "pink elephants"), (Class::Recipient, Mark::Unexplained));
    assert_eq!(read(Stage::Body, 554, "pink elephants"), (Class::Message, Mark::Unexplained));
    assert_eq!(read(Stage::MailFrom, 550, "pink elephants"), (Class::Sender, Mark::Unexplained));
    assert_eq!(read(Stage::RcptTo, 550, "user unknown"), (Class::Recipient, Mark::Plain));
    assert_eq!(read(Stage::RcptTo, 452, "too many recipients"), (Class::Transient, Mark::TooManyRecipients));
}

/// The class that a status and words of a Web API have, where the provider documents neither.
#[track_caller]
fn check_call(status: u16, text: &str, expected: &str) {
    let reply = ProviderReply { status, ..ProviderReply::default() };
    let verdict = reply.by_status(text, jiff::Timestamp::UNIX_EPOCH).read_by(&shipped(), status);
    let ReplyVerdict::Refused { class, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(class.as_str(), expected, "{status} {text}");
}

#[test]
fn undocumented_words_of_a_web_api_are_read_by_the_table() {
    check_call(400, "7001 Unconfigured Sending Domain <shop.example>", "sender");
    check_call(400, "invalid_parameter: the sender you used is not valid", "sender");
    check_call(400, "validation_error: API key is invalid", "config");
    check_call(403, "The sender identity was not verified", "sender");
    check_call(403, "go away", "config");
    check_call(422, "Invalid `to` field. The address needs an @", "recipient");
    check_call(413, "", "unsupported");
    check_call(400, "the moon is full", "unsupported");
}
