//! One message on an open session: envelope, permission, message, answer.
//!
//! With PIPELINING the envelope is one write and the message with its final dot another; without it, every command waits
//! for its answer.

use std::io::{self, IoSlice, Write as _};

use postrider_schemas::EmailAddress;
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    Mail,
    body::Body,
    failure::{Kind, SmtpFailure, SmtpTrouble},
    reply::{Garbage, SmtpReply},
    session::{Session, noted},
    settings::PENDING_REPLY,
    submit_permission::SubmitPermission,
    wire::Wire,
};
use crate::{
    policy::{
        classify::{Classification, DataPhase, mildest},
        outcome::{Class, Outcome, Receipt, RecipientRefusal, Refusal, Stage},
    },
    telemetry::{registry::attribute, traces},
};

/// With TLS, how much of the message's end goes with the final dot: one record.
const LAST_RECORD: usize = 16 * 1024 - 16;

/// What may become of the session after a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Every reply was read; it may serve again.
    Park,
    /// Something was refused; it may serve again once RSET was answered.
    Reset,
    /// It is of no further use.
    Drop,
    /// It was dead already when the transaction began: nothing was taken, another session may be tried.
    Stale,
    /// The relay left in the middle of the envelope: nothing was taken.
    Cut(Cut),
}

/// How far an envelope came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Recipients that were refused until then.
    pub refused: Vec<RecipientRefusal>,
    /// How many had an answer.
    pub answered: usize,
    /// The connection went away, or nothing more came, without a word.
    pub is_gone: bool,
    /// It was silence.
    pub is_silent: bool,
}

/// How the envelope went.
enum EnvelopeResult {
    /// The relay waits for the message, for everybody but these.
    Open(Vec<RecipientRefusal>),
    /// The relay does not want the message.
    Declined(Outcome, After),
}

impl Session {
    /// Sends one message. Not to be called again after anything but [`After::Park`], or [`After::Reset`] and a reset.
    pub async fn transact<F>(&mut self, mail: Mail<'_>, permission: &mut SubmitPermission<'_, F>) -> (Outcome, After)
    where
        F: Future<Output = bool>,
    {
        let body = Body::new(mail.message);
        if let Some(failure) = self.objection(mail, &body) {
            return (failure.into_outcome(), After::Park);
        }
        let is_reused = self.served > 0;
        self.served += 1;
        self.heard = 0;
        self.answered = 0;
        self.refused.clear();
        self.handover = DataPhase::No;
        match self.exchange(mail, &body, permission).await {
            Ok(end) => end,
            Err(failure) if is_reused && self.was_stale(&failure) => (failure.into_outcome(), After::Stale),
            Err(failure) => {
                let after = self.cut_off(&failure, is_reused).map_or(After::Drop, After::Cut);
                (failure.into_outcome(), after)
            }
        }
    }

    /// Where the relay left in the middle of the envelope: what it had said until then stands.
    fn cut_off(&mut self, failure: &SmtpFailure, is_reused: bool) -> Option<Cut> {
        let is_early = self.handover == DataPhase::No && failure.answer.stage != Stage::Body;
        let is_hung_up = failure.kind == Kind::Reply && failure.answer.code == Some(421) && self.answered > 0;
        let is_heard = self.heard > 0 || (!is_reused && failure.kind == Kind::Lost && self.replies.is_empty());
        let is_gone = is_heard && matches!(failure.kind, Kind::Lost | Kind::Silent);
        (is_early && (is_hung_up || is_gone)).then(|| Cut {
            refused: std::mem::take(&mut self.refused),
            answered: self.answered,
            is_gone,
            is_silent: failure.kind == Kind::Silent,
        })
    }

    /// Whether the envelope goes in one write.
    pub fn pipelines(&self) -> bool {
        self.offers.pipelining && !self.is_serial
    }

    /// True when the relay had given the connection up before it saw the transaction: it is gone without a word, or with 421
    /// for a first word. A 421 about our pace is meant for us.
    fn was_stale(&self, failure: &SmtpFailure) -> bool {
        let is_gone = failure.kind == Kind::Lost && self.heard == 0 && self.replies.is_empty();
        let is_idle = failure.answer.code == Some(421) && self.heard == 1;
        is_gone || (is_idle && matches!(failure.verdict, Classification::Refused(Class::Transient, _)))
    }

    /// Why this relay cannot get this message, as far as that is known before asking. Another relay may.
    fn objection(&self, mail: Mail<'_>, body: &Body<'_>) -> Option<SmtpFailure> {
        if mail.recipients.is_empty() {
            return Some(SmtpFailure::local(Stage::RcptTo, Class::Message, "the message has no recipient"));
        }
        let no = |stage, text: &str| Some(SmtpFailure::local(stage, Class::Unsupported, text));
        if let Some(max) = self.offers.size_max.filter(|max| body.size > *max) {
            return no(Stage::MailFrom, &format!("the message has {} bytes, the relay takes {max}", body.size));
        }
        if body.eight_bit && !self.offers.eight_bit_mime {
            return no(Stage::MailFrom, "the message has 8-bit content and the relay does not offer 8BITMIME");
        }
        if !self.offers.smtp_utf8 && mail.needs_smtputf8() {
            return no(Stage::MailFrom, "an address is not in ASCII and the relay does not offer SMTPUTF8");
        }
        None
    }

    async fn exchange<F>(
        &mut self,
        mail: Mail<'_>,
        body: &Body<'_>,
        permission: &mut SubmitPermission<'_, F>,
    ) -> Result<(Outcome, After), SmtpFailure>
    where
        F: Future<Output = bool>,
    {
        let lost = Ok((Outcome::LostClaim, After::Drop));
        let Some(envelope) = permission.alongside(self.envelope(mail, body)).await else { return lost };
        let refused = match envelope? {
            EnvelopeResult::Open(refused) => refused,
            EnvelopeResult::Declined(outcome, after) => return Ok((outcome, after)),
        };
        match timeout(self.limits.data, permission.granted()).await {
            Ok(true) => {}
            Ok(false) => return lost,
            Err(_) => {
                let text = "the permission to submit did not come in time";
                return Err(SmtpFailure::local(Stage::Data, Class::Transient, text));
            }
        }
        // A reply too many now would be taken for the answer to the message.
        if !self.is_quiet() {
            return Err(self.trouble(Stage::Data, &SmtpTrouble::Garbage(Garbage::Surplus)));
        }
        self.submit(body, refused).await
    }

    async fn envelope(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, SmtpFailure> {
        if self.pipelines() {
            // One round trip, one step.
            let step = traces::step("smtp envelope");
            step.set(attribute::SMTP_COMMANDS, "MAIL RCPT DATA");
            noted(&step, self.envelope_at_once(mail, body).await)
        } else {
            self.envelope_in_steps(mail, body).await
        }
    }

    async fn envelope_at_once(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, SmtpFailure> {
        self.out.clear();
        self.put_mail(mail, body);
        for recipient in mail.recipients {
            self.put_rcpt(recipient);
        }
        self.out.extend_from_slice(b"DATA\r\n");
        self.send(Stage::MailFrom).await?;

        let reply = self.reply(Stage::MailFrom, self.limits.command).await?;
        if let Some(refusal) = self.refusal(Stage::MailFrom, reply)? {
            let after = self.after_refused_sender(mail.recipients.len()).await;
            return Ok(declined(refusal, after));
        }
        for index in 0..mail.recipients.len() {
            self.read_rcpt(index).await?;
        }
        if self.refused.len() == mail.recipients.len() {
            let after = self.after_refused_recipients().await;
            return Ok(all_declined(std::mem::take(&mut self.refused), after));
        }
        self.read_data().await
    }

    /// Each command waits for its answer. Recipients are many: their round trips are one step.
    async fn envelope_in_steps(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, SmtpFailure> {
        let step = traces::step("smtp mail");
        if let Some(refusal) = noted(&step, self.ask_mail(mail, body).await)? {
            return Ok(declined(refusal, After::Reset));
        }
        drop(step);
        let step = traces::step("smtp rcpt");
        noted(&step, self.ask_rcpt(mail).await)?;
        drop(step);
        if self.refused.len() == mail.recipients.len() {
            return Ok(all_declined(std::mem::take(&mut self.refused), After::Reset));
        }
        let step = traces::step("smtp data");
        noted(&step, self.ask_data().await)
    }

    async fn ask_mail(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<Option<Refusal>, SmtpFailure> {
        self.out.clear();
        self.put_mail(mail, body);
        self.send(Stage::MailFrom).await?;
        let reply = self.reply(Stage::MailFrom, self.limits.command).await?;
        self.refusal(Stage::MailFrom, reply)
    }

    async fn ask_rcpt(&mut self, mail: Mail<'_>) -> Result<(), SmtpFailure> {
        for (index, recipient) in mail.recipients.iter().enumerate() {
            self.out.clear();
            self.put_rcpt(recipient);
            self.send(Stage::RcptTo).await?;
            self.read_rcpt(index).await?;
        }
        Ok(())
    }

    async fn ask_data(&mut self) -> Result<EnvelopeResult, SmtpFailure> {
        self.out.clear();
        self.out.extend_from_slice(b"DATA\r\n");
        self.send(Stage::Data).await?;
        self.read_data().await
    }

    fn put_mail(&mut self, mail: Mail<'_>, body: &Body<'_>) {
        self.out.extend_from_slice(b"MAIL FROM:<");
        if let Some(from) = mail.from {
            self.put_address(from);
        }
        self.out.push(b'>');
        if self.offers.size {
            // Writing to a vector cannot fail.
            let _ = write!(self.out, " SIZE={}", body.size);
        }
        if body.eight_bit {
            self.out.extend_from_slice(b" BODY=8BITMIME");
        }
        if mail.needs_smtputf8() {
            self.out.extend_from_slice(b" SMTPUTF8");
        }
        self.out.extend_from_slice(b"\r\n");
    }

    fn put_rcpt(&mut self, recipient: &EmailAddress) {
        self.out.extend_from_slice(b"RCPT TO:<");
        self.put_address(recipient);
        self.out.extend_from_slice(b">\r\n");
    }

    /// The type holds nothing that could end the command early.
    fn put_address(&mut self, address: &EmailAddress) {
        self.out.extend_from_slice(address.local().as_bytes());
        self.out.push(b'@');
        self.out.extend_from_slice(address.domain().as_str().as_bytes());
    }

    async fn read_rcpt(&mut self, index: usize) -> Result<(), SmtpFailure> {
        let reply = self.reply(Stage::RcptTo, self.limits.command).await?;
        if let Some(refusal) = self.refusal(Stage::RcptTo, reply)? {
            self.refused.push(RecipientRefusal { index, refusal });
        }
        self.answered += 1;
        Ok(())
    }

    /// The answer to DATA when somebody was accepted.
    async fn read_data(&mut self) -> Result<EnvelopeResult, SmtpFailure> {
        let reply = self.reply(Stage::Data, self.limits.data).await?;
        if reply.code == 354 {
            return Ok(EnvelopeResult::Open(std::mem::take(&mut self.refused)));
        }
        match self.refusal(Stage::Data, reply)? {
            Some(refusal) => Ok(declined(refusal, After::Reset)),
            None => Err(self.unwanted(Stage::Data, reply)),
        }
    }

    /// The sender was refused, and the answers to the rest of the flight are still to be read. They change nothing but what
    /// becomes of the session.
    async fn after_refused_sender(&mut self, recipients: usize) -> After {
        let mut is_anybody_accepted = false;
        for _ in 0..recipients {
            match self.reply(Stage::RcptTo, self.limits.command).await {
                Ok(reply) if reply.code == 421 => return After::Drop,
                Ok(reply) => is_anybody_accepted |= reply.is_positive(),
                Err(_) => return After::Drop,
            }
        }
        // A dot would end an empty message to them.
        if is_anybody_accepted { After::Drop } else { self.after_refused_recipients().await }
    }

    /// Nobody was accepted, and DATA was sent nevertheless. A relay that says 354 even so gets a lone dot, which ends the
    /// message that it waits for (RFC 2920 3.1).
    async fn after_refused_recipients(&mut self) -> After {
        match self.reply(Stage::Data, self.limits.data).await {
            Ok(reply) if reply.code == 354 => {}
            Ok(reply) if reply.code >= 400 && reply.code != 421 => return After::Reset,
            _ => return After::Drop,
        }
        match self.command(Stage::Data, &["."]).await {
            Ok(reply) if reply.code != 421 => After::Reset,
            _ => After::Drop,
        }
    }

    async fn submit(
        &mut self,
        body: &Body<'_>,
        refused: Vec<RecipientRefusal>,
    ) -> Result<(Outcome, After), SmtpFailure> {
        let step = traces::step("smtp body");
        let limit = self.limits.body;
        let trouble = match timeout(limit, self.write(body)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(SmtpTrouble::from(error)),
            Err(_) => Some(SmtpTrouble::TimedOut(limit)),
        };
        let reply = match trouble {
            None => noted(&step, self.reply(Stage::Body, self.limits.answer).await)?,
            Some(trouble) => noted(&step, self.reply_to_a_part(&trouble).await)?,
        };
        if reply.is_positive() {
            let answer = self.answer(Stage::Body, reply);
            let after = if self.replies.is_empty() { After::Park } else { After::Drop };
            return Ok((Outcome::Accepted { receipt: Receipt { answer }, refused }, after));
        }
        let after = if reply.code < 400 || reply.code == 421 || reply.is_cut { After::Drop } else { After::Reset };
        Ok((self.unwanted(Stage::Body, reply).into_outcome(), after))
    }

    /// Writes the message and the final dot, and keeps `handover` true to what the relay may have seen.
    ///
    /// In clear, the kernel has taken exactly what a write reports, so the dot has left when everything is reported. With TLS
    /// a write that fails may have sent some of what it was given, so the dot may have left once it was in a write.
    async fn write(&mut self, body: &Body<'_>) -> io::Result<()> {
        let mut message: &[u8] = &body.bytes;
        let mut tail = body.tail;
        if let Wire::Tls(_) = self.wire {
            let (early, last) = message.split_at(message.len().saturating_sub(LAST_RECORD));
            self.wire.write_all(early).await?;
            message = last;
            self.handover = DataPhase::Possible;
        }
        while !message.is_empty() || !tail.is_empty() {
            let count = self.wire.write_vectored(&[IoSlice::new(message), IoSlice::new(tail)]).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_message = count.min(message.len());
            message = &message[of_message..];
            tail = &tail[count - of_message..];
        }
        self.handover = DataPhase::Possible;
        self.wire.flush().await
    }

    /// A relay that hangs up in the middle of a message may have said why. Only a refusal counts.
    async fn reply_to_a_part(&mut self, trouble: &SmtpTrouble) -> Result<SmtpReply, SmtpFailure> {
        match timeout(PENDING_REPLY, self.read_reply()).await {
            Ok(Ok(reply)) if reply.code >= 400 => Err(self.unwanted(Stage::Body, reply)),
            _ => Err(self.trouble(Stage::Body, trouble)),
        }
    }
}

fn declined(refusal: Refusal, after: After) -> EnvelopeResult {
    EnvelopeResult::Declined(Outcome::Refused { refusal, recipients: Vec::new() }, after)
}

fn all_declined(recipients: Vec<RecipientRefusal>, after: After) -> EnvelopeResult {
    match mildest(&recipients).cloned() {
        Some(refusal) => EnvelopeResult::Declined(Outcome::Refused { refusal, recipients }, after),
        // Nobody was refused, so somebody waits for the message.
        None => EnvelopeResult::Open(recipients),
    }
}
