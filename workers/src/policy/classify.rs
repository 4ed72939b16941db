//! What an SMTP server's answer, or the lack of one, means: by stage and reply codes.
//!
//! One rule stands above the tables: once the final dot may have left us, only an answer tells whether the message was
//! taken. Everything else before that point is certain: nothing was taken.
//!
//! Texts are not read, with two exceptions: Amazon SES tells its two throttles apart in words only (`454 Throttling
//! failure: ...`), and a relay that does not relay for us says so with the codes of a closed mailbox.

use crate::policy::outcome::{Class, EnhancedCode, RecipientRefusal, Refusal, Stage};

/// What came where a positive reply was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpEvent<'a> {
    /// A well-formed reply.
    Reply {
        /// The reply code.
        code: u16,
        /// The enhanced status code, where there was one.
        enhanced: Option<EnhancedCode>,
        /// The text after the codes.
        text: &'a str,
    },
    /// The connection ended or failed.
    Closed,
    /// This machine could not do its part: see [`Class::Local`].
    Local,
    /// Nothing came within the stage's limit.
    TimedOut,
    /// Something that is no reply, or one that nobody asked for.
    Garbage,
}

/// Whether the server may have seen the whole message, final dot included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPhase {
    /// The final dot has certainly not left us.
    No,
    /// The final dot may be on the wire.
    Possible,
}

/// What an event means for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classification {
    /// Certainly not taken.
    Refused(Class),
    /// It may have been taken.
    Unknown,
}

/// What `event` at `stage` means for the message. The reply that was hoped for (2xx, or 354 to DATA) does not belong
/// here: a positive reply in the wrong place counts as garbage.
pub fn classify(stage: Stage, event: SmtpEvent<'_>, handover: DataPhase) -> Classification {
    match (event, handover) {
        (SmtpEvent::Reply { code, enhanced, text }, _) if (400..600).contains(&code) => {
            Classification::Refused(refusal(stage, code, enhanced, text))
        }
        (_, DataPhase::Possible) => Classification::Unknown,
        (SmtpEvent::Local, DataPhase::No) => Classification::Refused(Class::Local),
        (_, DataPhase::No) => Classification::Refused(Class::Transient),
    }
}

/// The class of a negative reply (4xx or 5xx) at `stage`.
fn refusal(stage: Stage, code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Class {
    let detail = enhanced.map(|EnhancedCode(_, subject, detail)| (subject, detail));
    if code < 500 { temporary(stage, code, detail, text) } else { permanent(stage, code, detail, text) }
}

fn temporary(stage: Stage, code: u16, detail: Option<(u16, u16)>, text: &str) -> Class {
    match (stage, code, detail) {
        (_, 454, _) if mentions(text, "throttling") => {
            if mentions(text, "quota") {
                Class::Quota
            } else {
                Class::Throttled
            }
        }
        // Here x.7 speaks of TLS and of the credentials, not of our pace: "454 4.7.0 Temporary authentication failure".
        (Stage::Tls | Stage::Auth, 450..=499, _) => Class::Transient,
        // x.7: policy, which on a temporary refusal is a rate or a reputation. 2.1: this mailbox gets mail too fast.
        // 3.2: takes no mail just now. 4.5: congestion.
        (_, _, Some((7, _) | (2, 1) | (3, 2) | (4, 5))) => Class::Throttled,
        _ => Class::Transient,
    }
}

fn permanent(stage: Stage, code: u16, detail: Option<(u16, u16)>, text: &str) -> Class {
    match (stage, code, detail) {
        // The account is over its daily limit (Google: 5.4.5; Microsoft: 5.1.90, 5.7.232, 5.7.233).
        (_, _, Some((4, 5) | (1, 90) | (7, 232 | 233))) => Class::Quota,
        // Until a person mends the relay or its credentials, every message gets the same answer. From RCPT on it may be the recipient's server that
        // speaks ("550 5.7.8 ... said: 535"), and what that thinks of the relay's login is not about ours.
        (Stage::Connect | Stage::Tls | Stage::Hello | Stage::Auth, ..)
        | (Stage::MailFrom, 530 | 534 | 535 | 538, _)
        | (Stage::MailFrom, _, Some((7, 8 | 9 | 11 | 57)))
        | (_, 502, _) => Class::Config,
        // It wants a login for these recipients; others, it may take.
        (Stage::RcptTo, 530, _) => Class::Sender,
        // "Bad sequence of commands" is about this conversation; another one starts from nothing.
        (_, 503, _) => Class::Transient,
        (Stage::RcptTo, ..) => permanent_at_rcpt(code, detail, text),
        _ => Class::Message,
    }
}

/// Policy refusals (5.7.x) stay with their recipient: as `Config`, one closed mailing list would stop the whole relay.
fn permanent_at_rcpt(code: u16, detail: Option<(u16, u16)>, text: &str) -> Class {
    match (code, detail) {
        // Nothing is wrong with the recipient. Not `Config` either: a relay may serve other domains, and one address would stop its mail.
        (_, None | Some((7, 0 | 1 | 54))) if does_not_relay(text) => Class::Sender,
        // Too many recipients; RFC 5321 4.5.3.1.10 wants a bare 552 read as 452.
        (_, Some((5, 3))) | (552, None) => Class::Transient,
        // About the sender (1.7, 1.8) or the size (3.4), which are the same for every recipient.
        (_, Some((1, 7 | 8) | (3, 4))) => Class::Message,
        _ => Class::Recipient,
    }
}

/// The refusal that leaves the most hope; the first one of those. `None` for an empty slice.
pub fn mildest(refusals: &[RecipientRefusal]) -> Option<&Refusal> {
    mildest_of(refusals.iter().map(|one| one.refusal.class)).map(|position| &refusals[position].refusal)
}

/// The position of the class that leaves the most hope; the first one of those.
pub fn mildest_of(classes: impl Iterator<Item = Class>) -> Option<usize> {
    let hope = |class| match class {
        Class::Throttled | Class::Local => 0,
        Class::Transient => 1,
        Class::Quota => 2,
        Class::Config => 3,
        Class::Sender => 4,
        Class::Recipient => 5,
        Class::Message => 6,
        Class::TemplateLimit => 7,
        Class::Unsupported => 8,
    };
    classes.enumerate().min_by_key(|(_, class)| hope(*class)).map(|(position, _)| position)
}

/// Whether a relay says that it relays nothing for us there: in the words of Postfix, Sendmail, Exim, Exchange and Google Workspace. What somebody
/// else said to the relay, which a relay that asks the recipient's server first repeats, does not count.
fn does_not_relay(text: &str) -> bool {
    const WORDS: [&str; 6] = [
        "relay access denied",
        "relaying denied",
        "relay not permitted",
        "unable to relay",
        "mail relay denied",
        "credentials for relay",
    ];
    WORDS.iter().any(|words| mentions(text, words)) && !mentions(text, " said:")
}

fn mentions(text: &str, lower_case: &str) -> bool {
    text.as_bytes().windows(lower_case.len()).any(|part| part.eq_ignore_ascii_case(lower_case.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::outcome::Answer;

    const EVERY_STAGE: [Stage; 8] = [
        Stage::Connect,
        Stage::Tls,
        Stage::Hello,
        Stage::Auth,
        Stage::MailFrom,
        Stage::RcptTo,
        Stage::Data,
        Stage::Body,
    ];

    /// `reply` as on the wire: code, optional enhanced code, text.
    #[track_caller]
    fn check(stage: Stage, reply: &str, expected: Class) {
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
        for handover in [DataPhase::No, DataPhase::Possible] {
            let event = SmtpEvent::Reply { code, enhanced, text: rest };
            assert_eq!(
                classify(stage, event, handover),
                Classification::Refused(expected),
                "{stage:?} {reply} {handover:?}"
            );
        }
    }

    #[test]
    fn a_greeting_or_hello_that_is_refused_for_good_needs_a_person() {
        check(Stage::Connect, "554 5.7.1 You are not welcome", Class::Config);
        check(Stage::Connect, "554", Class::Config);
        check(Stage::Hello, "550 5.7.1 Bad name", Class::Config);
        check(Stage::Tls, "501 no", Class::Config);
        check(Stage::Connect, "421 4.3.0 starting up", Class::Transient);
        check(Stage::Connect, "421 4.7.0 too many connections from you", Class::Throttled);
    }

    #[test]
    fn credentials_need_a_person_but_a_broken_password_database_does_not() {
        check(Stage::Auth, "535 5.7.8 bad credentials", Class::Config);
        check(Stage::Auth, "534 5.7.9 mechanism too weak", Class::Config);
        check(Stage::Auth, "504 5.5.4 unknown mechanism", Class::Config);
        check(Stage::Auth, "454 4.7.0 temporary authentication failure", Class::Transient);
        check(Stage::Tls, "454 4.7.0 TLS not available", Class::Transient);
        check(Stage::MailFrom, "530 5.7.0 Must issue a STARTTLS command first", Class::Config);
        check(Stage::MailFrom, "530 5.7.1 Authentication required", Class::Config);
        check(Stage::MailFrom, "530 5.7.57 Client was not authenticated", Class::Config);
        check(Stage::RcptTo, "530 5.7.57 Client was not authenticated", Class::Sender);
        check(Stage::MailFrom, "550 5.7.8 log in", Class::Config);
        check(Stage::Data, "502 5.5.2 command not recognized", Class::Config);
    }

    #[test]
    fn what_a_recipients_server_says_of_a_login_is_not_about_ours() {
        let repeated = "550 5.7.8 host mx.dest.test said: 535 5.7.8 authentication failed";
        check(Stage::RcptTo, repeated, Class::Recipient);
        check(Stage::Body, repeated, Class::Message);
        check(Stage::Data, repeated, Class::Message);
        for code in ["535", "534 5.7.9", "538 5.7.11", "550 5.7.9", "550 5.7.11", "550 5.7.57"] {
            check(Stage::RcptTo, &format!("{code} no"), Class::Recipient);
            check(Stage::Body, &format!("{code} no"), Class::Message);
        }
    }

    #[test]
    fn what_this_machine_lacks_is_neither_the_mails_fault_nor_the_relays() {
        for stage in EVERY_STAGE {
            assert_eq!(classify(stage, SmtpEvent::Local, DataPhase::No), Classification::Refused(Class::Local));
            assert_eq!(classify(stage, SmtpEvent::Local, DataPhase::Possible), Classification::Unknown);
        }
    }

    #[test]
    fn a_permanent_refusal_of_the_sender_is_about_the_message() {
        check(Stage::MailFrom, "550 5.7.1 sender blocked", Class::Message);
        check(Stage::MailFrom, "550 5.7.0 sender blocked", Class::Message);
        check(Stage::MailFrom, "552 5.3.4 too big", Class::Message);
        check(Stage::MailFrom, "501 5.1.7 bad sender syntax", Class::Message);
        check(Stage::RcptTo, "550 5.1.8 sender domain not found", Class::Message);
        check(Stage::RcptTo, "552 5.3.4 too big", Class::Message);
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
        check(Stage::Body, "552 5.3.4 too big", Class::Message);
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
                assert_ne!(classify(stage, event, DataPhase::Possible), Classification::Unknown, "{stage:?} {code}");
            }
        }
    }

    #[test]
    fn a_temporary_code_is_never_permanent_at_any_stage() {
        for stage in EVERY_STAGE {
            for (code, subject, detail) in
                (400..500).flat_map(|c| (0..8).flat_map(move |s| (0..9).map(move |d| (c, s, d))))
            {
                let class = refusal(stage, code, Some(EnhancedCode(4, subject, detail)), "");
                assert!(
                    !class.is_permanent() && class != Class::Config,
                    "{stage:?} {code} 4.{subject}.{detail}: {class:?}"
                );
            }
        }
    }

    #[test]
    fn no_answer_is_unknown_only_once_the_dot_may_have_left() {
        let odd = SmtpEvent::Reply { code: 354, enhanced: None, text: "" };
        for event in [SmtpEvent::Closed, SmtpEvent::TimedOut, SmtpEvent::Garbage, odd] {
            for stage in EVERY_STAGE {
                assert_eq!(
                    classify(stage, event, DataPhase::No),
                    Classification::Refused(Class::Transient),
                    "{stage:?} {event:?}"
                );
            }
            assert_eq!(classify(Stage::Body, event, DataPhase::Possible), Classification::Unknown, "{event:?}");
        }
    }

    #[test]
    fn the_mildest_refusal_speaks_for_all() {
        let refusals: Vec<_> = [Class::Recipient, Class::Transient, Class::Recipient, Class::Transient]
            .into_iter()
            .enumerate()
            .map(|(index, class)| {
                let answer = Answer::local(Stage::RcptTo, &index.to_string());
                RecipientRefusal { index, refusal: Refusal { class, answer, retry_after: None } }
            })
            .collect();
        assert_eq!(mildest(&refusals), Some(&refusals[1].refusal));
        assert_eq!(mildest(&refusals[..1]), Some(&refusals[0].refusal));
        assert_eq!(mildest(&[]), None);
    }
}
