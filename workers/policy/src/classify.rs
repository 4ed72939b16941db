//! What an SMTP server's answer, or the lack of one, means.
//!
//! One rule stands above the table: once the final dot may have left us, only an answer tells whether the message was
//! taken. Everything else before that point is certain: nothing was taken. Whom a negative reply is about is read from
//! [`Answers`], the same way at every stage.

use super::answers::Answers;
use crate::outcome::{Class, EnhancedCode, Mark, RecipientRefusal, Refusal, Stage};

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
    Refused(Class, Mark),
    /// It may have been taken.
    Unknown,
}

/// What `event` at `stage` means for the message. The reply that was hoped for (2xx, or 354 to DATA) does not belong
/// here: a positive reply in the wrong place counts as garbage.
pub fn classify(answers: &Answers, stage: Stage, event: SmtpEvent<'_>, handover: DataPhase) -> Classification {
    match (event, handover) {
        (SmtpEvent::Reply { code, enhanced, text }, _) if (400..600).contains(&code) => {
            let reading = answers.read(stage, code, enhanced, text);
            Classification::Refused(reading.class, reading.mark)
        }
        (_, DataPhase::Possible) => Classification::Unknown,
        (SmtpEvent::Local, DataPhase::No) => Classification::Refused(Class::Local, Mark::Plain),
        // Nobody spoke of a message yet: the transport is not there.
        (_, DataPhase::No) if stage.is_before_the_envelope() => {
            Classification::Refused(Class::Unavailable, Mark::Plain)
        }
        (_, DataPhase::No) => Classification::Refused(Class::Transient, Mark::Plain),
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
        Class::Unavailable => 2,
        Class::Quota => 3,
        Class::Config => 4,
        Class::Sender => 5,
        Class::Recipient => 6,
        Class::Message => 7,
        Class::TemplateLimit => 8,
        Class::Unsupported => 9,
    };
    classes.enumerate().min_by_key(|(_, class)| hope(*class)).map(|(position, _)| position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Answer;

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

    #[test]
    fn what_this_machine_lacks_is_neither_the_mails_fault_nor_the_relays() {
        let answers = Answers::default();
        for stage in EVERY_STAGE {
            let local = |phase| classify(&answers, stage, SmtpEvent::Local, phase);
            assert_eq!(local(DataPhase::No), Classification::Refused(Class::Local, Mark::Plain));
            assert_eq!(local(DataPhase::Possible), Classification::Unknown);
        }
    }

    #[test]
    fn no_answer_is_unknown_only_once_the_dot_may_have_left() {
        let answers = Answers::default();
        let odd = SmtpEvent::Reply { code: 354, enhanced: None, text: "" };
        for event in [SmtpEvent::Closed, SmtpEvent::TimedOut, SmtpEvent::Garbage, odd] {
            for stage in EVERY_STAGE {
                let class = if stage.is_before_the_envelope() { Class::Unavailable } else { Class::Transient };
                let expected = Classification::Refused(class, Mark::Plain);
                assert_eq!(classify(&answers, stage, event, DataPhase::No), expected, "{stage:?} {event:?}");
            }
            assert_eq!(
                classify(&answers, Stage::Body, event, DataPhase::Possible),
                Classification::Unknown,
                "{event:?}"
            );
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
