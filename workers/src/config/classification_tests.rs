//! Replies of each stage, read by the table that ships.

use super::shipped;
use crate::policy::{
    classify::{Classification, DataPhase, SmtpEvent, classify},
    outcome::{Class, EnhancedCode, Stage},
};

const EVERY_STAGE: [Stage; 8] =
    [Stage::Connect, Stage::Tls, Stage::Hello, Stage::Auth, Stage::MailFrom, Stage::RcptTo, Stage::Data, Stage::Body];

/// The class of `reply` as on the wire: code, optional enhanced code, text.
#[track_caller]
fn class_of(stage: Stage, reply: &str) -> Class {
    let (code, rest) = reply.split_once(' ').unwrap_or((reply, ""));
    let code = code.parse().unwrap();
    let enhanced = rest.split(' ').next().and_then(|word| {
        let mut parts = word.split('.').map(str::parse::<u16>);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(class)), Some(Ok(subject)), Some(Ok(detail))) => {
                Some(EnhancedCode(u8::try_from(class).unwrap(), subject, detail))
            }
            _ => None,
        }
    });
    let answers = shipped();
    let [before, after] = [DataPhase::No, DataPhase::Possible].map(|phase| {
        let event = SmtpEvent::Reply { code, enhanced, text: rest };
        let Classification::Refused(class, _) = classify(&answers, stage, event, phase) else { panic!("{reply}") };
        class
    });
    assert_eq!(before, after, "{reply}");
    before
}

#[track_caller]
fn check(stage: Stage, reply: &str, expected: Class) {
    assert_eq!(class_of(stage, reply), expected, "{stage:?} {reply}");
}

#[test]
fn a_greeting_or_hello_that_is_refused_for_good_needs_a_person() {
    check(Stage::Connect, "554 5.7.1 You are not welcome", Class::Config);
    check(Stage::Connect, "554", Class::Config);
    check(Stage::Hello, "550 5.7.1 Bad name", Class::Config);
    check(Stage::Tls, "501 no", Class::Config);
    check(Stage::Connect, "421 4.3.0 starting up", Class::Unavailable);
    check(Stage::Connect, "421 4.7.0 too many connections from you", Class::Throttled);
}

#[test]
fn credentials_need_a_person_but_a_broken_password_database_does_not() {
    check(Stage::Auth, "535 5.7.8 bad credentials", Class::Config);
    check(Stage::Auth, "534 5.7.9 mechanism too weak", Class::Config);
    check(Stage::Auth, "504 5.5.4 unknown mechanism", Class::Config);
    check(Stage::Auth, "454 4.7.0 temporary authentication failure", Class::Unavailable);
    check(Stage::Tls, "454 4.7.0 TLS not available", Class::Unavailable);
    check(Stage::MailFrom, "530 5.7.0 Must issue a STARTTLS command first", Class::Config);
    check(Stage::MailFrom, "530 5.7.1 Authentication required", Class::Config);
    check(Stage::MailFrom, "530 5.7.57 Client was not authenticated", Class::Config);
    check(Stage::RcptTo, "530 5.7.57 Client was not authenticated", Class::Config);
    check(Stage::MailFrom, "550 5.7.8 log in", Class::Config);
    check(Stage::Data, "502 5.5.2 command not recognized", Class::Transient);
}

#[test]
fn what_a_recipients_server_says_of_a_login_is_not_about_ours() {
    let repeated = "550 5.7.8 host mx.dest.test said: 535 5.7.8 authentication failed";
    for stage in [Stage::RcptTo, Stage::Data, Stage::Body] {
        for reply in [repeated, "535 no", "534 5.7.9 no", "538 5.7.11 no", "550 5.7.9 no", "550 5.7.57 no"] {
            assert_ne!(class_of(stage, reply), Class::Config, "{stage:?} {reply}");
        }
    }
}

#[test]
fn a_permanent_refusal_of_the_sender_is_about_us() {
    check(Stage::MailFrom, "550 5.7.1 sender blocked", Class::Sender);
    check(Stage::MailFrom, "550 5.7.0 no", Class::Sender);
    check(Stage::MailFrom, "501 5.1.7 bad sender syntax", Class::Sender);
    check(Stage::RcptTo, "550 5.1.8 sender domain not found", Class::Sender);
}

#[test]
fn what_this_relay_cannot_carry_is_no_fault_of_the_message() {
    for stage in [Stage::MailFrom, Stage::RcptTo, Stage::Body] {
        check(stage, "552 5.3.4 too big", Class::Unsupported);
        check(stage, "552 message exceeds fixed maximum message size", Class::Unsupported);
    }
    check(Stage::Body, "554 5.6.3 conversion required", Class::Unsupported);
    check(Stage::MailFrom, "555 5.5.4 Unsupported option: SIZE=299", Class::Unsupported);
    check(Stage::MailFrom, "501 5.5.4 Unrecognized parameter BODY=8BITMIME", Class::Unsupported);
    check(Stage::RcptTo, "553 5.6.7 non-ASCII addresses are not permitted", Class::Unsupported);
}

#[test]
fn a_permanent_refusal_at_rcpt_is_about_that_recipient() {
    check(Stage::RcptTo, "550 5.1.1 no such user", Class::Recipient);
    check(Stage::RcptTo, "550", Class::Recipient);
    check(Stage::RcptTo, "501 5.1.3 bad address", Class::Recipient);
    check(Stage::RcptTo, "552 5.2.2 mailbox full", Class::Recipient);
    check(Stage::RcptTo, "550 5.7.1 list is closed", Class::Recipient);
}

#[test]
fn a_relay_that_does_not_relay_for_us_says_nothing_about_the_recipient() {
    check(Stage::RcptTo, "554 5.7.1 <ada@dest.test>: Relay access denied", Class::Sender);
    check(Stage::RcptTo, "550 5.7.1 <ada@dest.test>... Relaying denied", Class::Sender);
    check(Stage::RcptTo, "550 relay not permitted", Class::Sender);
    check(Stage::RcptTo, "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain", Class::Sender);
    check(Stage::RcptTo, "550 5.7.0 Mail relay denied [192.0.2.1]", Class::Sender);
    check(Stage::RcptTo, "550 5.7.1 Invalid credentials for relay [192.0.2.1]", Class::Sender);
    let repeated = "550 5.7.1 undeliverable address: host mx.dest.test said: 554 Relay access denied";
    check(Stage::RcptTo, repeated, Class::Recipient);
    check(Stage::RcptTo, "550 5.1.1 relay access denied", Class::Recipient);
}

#[test]
fn too_many_recipients_is_no_bounce() {
    check(Stage::RcptTo, "452 4.5.3 too many recipients", Class::Transient);
    check(Stage::RcptTo, "550 5.5.3 too many recipients", Class::Transient);
    check(Stage::RcptTo, "552 too many recipients", Class::Transient);
}

#[test]
fn a_permanent_refusal_of_the_content_is_about_the_message() {
    check(Stage::Data, "554 5.7.1 no", Class::Message);
    check(Stage::Body, "554 5.7.1 spam", Class::Message);
    check(Stage::Body, "550 5.1.1 no such user", Class::Message);
}

#[test]
fn a_wish_for_a_slower_pace_is_heard() {
    check(Stage::MailFrom, "421 4.7.0 slow down", Class::Throttled);
    check(Stage::RcptTo, "451 4.7.1 too much mail", Class::Throttled);
    check(Stage::RcptTo, "450 4.2.1 receiving mail too fast", Class::Throttled);
    check(Stage::MailFrom, "432 4.3.2 concurrent connections", Class::Throttled);
    check(Stage::Data, "421 4.3.2 system not accepting messages", Class::Throttled);
    check(Stage::Body, "451 4.7.500 server busy", Class::Throttled);
    check(Stage::Body, "454 Throttling failure: Maximum sending rate exceeded.", Class::Throttled);
    check(Stage::RcptTo, "451 4.4.5 congestion", Class::Throttled);
}

#[test]
fn a_used_up_quota_is_no_bounce() {
    check(Stage::Body, "454 Throttling failure: Daily message quota exceeded.", Class::Quota);
    check(Stage::MailFrom, "550 5.4.5 Daily user sending limit exceeded", Class::Quota);
    check(Stage::RcptTo, "550 5.1.90 daily limit for recipients", Class::Quota);
}

#[test]
fn any_other_temporary_refusal_may_pass() {
    check(Stage::RcptTo, "450 4.2.0 greylisted", Class::Transient);
    check(Stage::RcptTo, "452 4.2.2 mailbox full", Class::Transient);
    check(Stage::MailFrom, "452 4.3.1 insufficient storage", Class::Transient);
    check(Stage::Body, "451 4.3.0 queue file write error", Class::Transient);
    check(Stage::Body, "421 4.3.0 shutting down", Class::Transient);
    check(Stage::MailFrom, "421 closing", Class::Transient);
    check(Stage::MailFrom, "503 5.5.1 nested MAIL command", Class::Transient);
}

#[test]
fn a_reply_that_was_read_is_never_unknown() {
    for stage in EVERY_STAGE {
        for code in 400..600 {
            let event = SmtpEvent::Reply { code, enhanced: None, text: "" };
            assert_ne!(
                classify(&shipped(), stage, event, DataPhase::Possible),
                Classification::Unknown,
                "{stage:?} {code}"
            );
        }
    }
}

#[test]
fn a_temporary_code_is_never_permanent_at_any_stage() {
    let answers = shipped();
    for stage in EVERY_STAGE {
        for (code, subject, detail) in (400..600).flat_map(|c| (0..8).flat_map(move |s| (0..9).map(move |d| (c, s, d))))
        {
            let class = answers.read(stage, code, Some(EnhancedCode(4, subject, detail)), "").class;
            assert!(
                !class.is_permanent() && class != Class::Config,
                "{stage:?} {code} 4.{subject}.{detail}: {class:?}"
            );
        }
    }
}
