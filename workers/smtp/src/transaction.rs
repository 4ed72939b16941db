//! One message on an open session: envelope, permission, message, answer.
//!
//! With PIPELINING the envelope is one write and the message with its final dot another; without it, every command waits
//! for its answer.

use std::{
    io::{self, IoSlice, Write as _},
    pin::pin,
};

use postrider_schemas::EmailAddress;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    body::Body,
    failure::{Cause, Failure, Stage},
    observer::{Observer, Span, Step},
    reply::{Garbage, Reply, SmtpReply},
    result::{After, Cut, Delivery, Mail, RecipientReply},
    session::Session,
    settings::PENDING_REPLY,
    submit_permission::SubmitPermission,
    wire::Wire,
};

/// With TLS, how much of the message's end goes with the final dot: one record.
const LAST_RECORD: usize = 16 * 1024 - 16;

/// How the envelope went.
enum EnvelopeResult {
    /// The relay waits for the message, for everybody but these.
    Open(Vec<RecipientReply>),
    /// The relay does not want the message.
    Declined(Delivery, After),
}

impl<O: Observer> Session<O> {
    /// Sends one message. Not to be called again after anything but [`After::Reusable`], or [`After::NeedsReset`] and a reset.
    pub async fn send(&mut self, mail: Mail<'_>) -> (Delivery, After) {
        let may_submit = pin!(std::future::ready(true));
        self.send_permitted(mail, &mut SubmitPermission::new(may_submit)).await
    }

    /// Sends one message as [`Session::send`] does, once `permission` says that it may: the permission is asked for while the envelope is
    /// under way, and the message's first byte is written only after it was given.
    pub async fn send_permitted<F>(
        &mut self,
        mail: Mail<'_>,
        permission: &mut SubmitPermission<'_, F>,
    ) -> (Delivery, After)
    where
        F: Future<Output = bool>,
    {
        let body = Body::new(mail.message);
        if let Some(failure) = self.objection(mail, &body) {
            return (Delivery::NotTaken(failure), After::Reusable);
        }
        let is_reused = self.served > 0;
        self.served += 1;
        self.heard = 0;
        self.answered = 0;
        self.refused.clear();
        self.may_be_taken = false;
        match self.exchange(mail, &body, permission).await {
            Ok(end) => end,
            Err(failure) if is_reused && self.was_stale(&failure) => (Delivery::NotTaken(failure), After::Stale),
            Err(failure) => {
                let after = self.cut_off(&failure, is_reused).map_or(After::Unusable, After::Cut);
                (self.ended_by(failure), after)
            }
        }
    }

    /// Once the final dot may have left, only a refusal tells that the message was not taken.
    fn ended_by(&self, failure: Failure) -> Delivery {
        if self.may_be_taken && failure.refusal().is_none() {
            Delivery::Unknown(failure)
        } else {
            Delivery::NotTaken(failure)
        }
    }

    /// Where the server left in the middle of the envelope: what it had said until then stands.
    fn cut_off(&mut self, failure: &Failure, is_reused: bool) -> Option<Cut> {
        let is_early = !self.may_be_taken && failure.stage != Stage::Body;
        let is_hung_up = failure.is_code(421) && self.answered > 0;
        let is_heard = self.heard > 0 || (!is_reused && failure.is_lost() && self.replies.is_empty());
        let is_gone = is_heard && (failure.is_lost() || failure.is_silent());
        (is_early && (is_hung_up || is_gone)).then(|| Cut {
            refused: std::mem::take(&mut self.refused),
            answered: self.answered,
            is_gone,
            is_silent: failure.is_silent(),
        })
    }

    /// Whether the envelope goes in one write.
    pub fn pipelines(&self) -> bool {
        self.offers.pipelining && !self.is_serial
    }

    /// True when the server had given the connection up before it saw the transaction: it is gone without a word, or with 421 for a first
    /// word.
    fn was_stale(&self, failure: &Failure) -> bool {
        let is_gone = failure.is_lost() && self.heard == 0 && self.replies.is_empty();
        is_gone || (failure.is_code(421) && self.heard == 1)
    }

    /// Why this server cannot get this message, as far as that is known before asking. Another server may.
    fn objection(&self, mail: Mail<'_>, body: &Body<'_>) -> Option<Failure> {
        if mail.recipients.is_empty() {
            return Some(Failure::new(Stage::RcptTo, Cause::NoRecipient));
        }
        let no = |text: &str| Some(Failure::new(Stage::MailFrom, Cause::Unsupported(text.to_owned())));
        if let Some(max) = self.offers.size_max.filter(|max| body.size > *max) {
            return no(&format!("the message has {} bytes, the relay takes {max}", body.size));
        }
        if body.eight_bit && !self.offers.eight_bit_mime {
            return no("the message has 8-bit content and the relay does not offer 8BITMIME");
        }
        if !self.offers.smtp_utf8 && mail.needs_smtputf8() {
            return no("an address is not in ASCII and the relay does not offer SMTPUTF8");
        }
        None
    }

    async fn exchange<F>(
        &mut self,
        mail: Mail<'_>,
        body: &Body<'_>,
        permission: &mut SubmitPermission<'_, F>,
    ) -> Result<(Delivery, After), Failure>
    where
        F: Future<Output = bool>,
    {
        let withdrawn = Ok((Delivery::Withdrawn, After::Unusable));
        let Some(envelope) = permission.alongside(self.envelope(mail, body)).await else { return withdrawn };
        let refused = match envelope? {
            EnvelopeResult::Open(refused) => refused,
            EnvelopeResult::Declined(delivery, after) => return Ok((delivery, after)),
        };
        match timeout(self.limits.data, permission.granted()).await {
            Ok(true) => {}
            Ok(false) => return withdrawn,
            Err(_) => return Err(Failure::new(Stage::Data, Cause::PermissionLate)),
        }
        // A reply too many now would be taken for the answer to the message.
        if !self.is_quiet() {
            return Err(Failure::new(Stage::Data, Garbage::Surplus));
        }
        self.submit(body, refused).await
    }

    async fn envelope(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, Failure> {
        if self.pipelines() {
            // One round trip, one step.
            let step = self.observer.begin(Step::Envelope);
            step.note(self.envelope_at_once(mail, body).await)
        } else {
            self.envelope_in_steps(mail, body).await
        }
    }

    async fn envelope_at_once(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, Failure> {
        self.out.clear();
        self.put_mail(mail, body);
        for recipient in mail.recipients {
            self.put_rcpt(recipient);
        }
        self.out.extend_from_slice(b"DATA\r\n");
        self.write_out(Stage::MailFrom).await?;

        let reply = self.reply(Stage::MailFrom, self.limits.command).await?;
        if let Some(refusal) = self.refusal(Stage::MailFrom, reply)? {
            let after = self.after_refused_sender(mail.recipients.len()).await;
            return Ok(declined(Stage::MailFrom, refusal, after));
        }
        for index in 0..mail.recipients.len() {
            self.read_rcpt(index).await?;
        }
        if self.refused.len() == mail.recipients.len() {
            let after = self.after_refused_recipients().await;
            return Ok(EnvelopeResult::Declined(Delivery::AllRefused(std::mem::take(&mut self.refused)), after));
        }
        self.read_data().await
    }

    /// Each command waits for its answer. Recipients are many: their round trips are one step.
    async fn envelope_in_steps(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<EnvelopeResult, Failure> {
        let step = self.observer.begin(Step::Mail);
        if let Some(refusal) = step.note(self.ask_mail(mail, body).await)? {
            return Ok(declined(Stage::MailFrom, refusal, After::NeedsReset));
        }
        drop(step);
        let step = self.observer.begin(Step::Rcpt);
        step.note(self.ask_rcpt(mail).await)?;
        drop(step);
        if self.refused.len() == mail.recipients.len() {
            return Ok(EnvelopeResult::Declined(
                Delivery::AllRefused(std::mem::take(&mut self.refused)),
                After::NeedsReset,
            ));
        }
        let step = self.observer.begin(Step::Data);
        step.note(self.ask_data().await)
    }

    async fn ask_mail(&mut self, mail: Mail<'_>, body: &Body<'_>) -> Result<Option<Reply>, Failure> {
        self.out.clear();
        self.put_mail(mail, body);
        self.write_out(Stage::MailFrom).await?;
        let reply = self.reply(Stage::MailFrom, self.limits.command).await?;
        self.refusal(Stage::MailFrom, reply)
    }

    async fn ask_rcpt(&mut self, mail: Mail<'_>) -> Result<(), Failure> {
        for (index, recipient) in mail.recipients.iter().enumerate() {
            self.out.clear();
            self.put_rcpt(recipient);
            self.write_out(Stage::RcptTo).await?;
            self.read_rcpt(index).await?;
        }
        Ok(())
    }

    async fn ask_data(&mut self) -> Result<EnvelopeResult, Failure> {
        self.out.clear();
        self.out.extend_from_slice(b"DATA\r\n");
        self.write_out(Stage::Data).await?;
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

    async fn read_rcpt(&mut self, index: usize) -> Result<(), Failure> {
        let reply = self.reply(Stage::RcptTo, self.limits.command).await?;
        if let Some(reply) = self.refusal(Stage::RcptTo, reply)? {
            self.refused.push(RecipientReply { index, reply });
        }
        self.answered += 1;
        Ok(())
    }

    /// The answer to DATA when somebody was accepted.
    async fn read_data(&mut self) -> Result<EnvelopeResult, Failure> {
        let reply = self.reply(Stage::Data, self.limits.data).await?;
        if reply.code == 354 {
            return Ok(EnvelopeResult::Open(std::mem::take(&mut self.refused)));
        }
        match self.refusal(Stage::Data, reply)? {
            Some(refusal) => Ok(declined(Stage::Data, refusal, After::NeedsReset)),
            None => Err(self.unwanted(Stage::Data, reply)),
        }
    }

    /// The sender was refused, and the answers to the rest of the flight are still to be read. They change nothing but what
    /// becomes of the session.
    async fn after_refused_sender(&mut self, recipients: usize) -> After {
        let mut is_anybody_accepted = false;
        for _ in 0..recipients {
            match self.reply(Stage::RcptTo, self.limits.command).await {
                Ok(reply) if reply.code == 421 => return After::Unusable,
                Ok(reply) => is_anybody_accepted |= reply.is_positive(),
                Err(_) => return After::Unusable,
            }
        }
        // A dot would end an empty message to them.
        if is_anybody_accepted { After::Unusable } else { self.after_refused_recipients().await }
    }

    /// Nobody was accepted, and DATA was sent nevertheless. A relay that says 354 even so gets a lone dot, which ends the
    /// message that it waits for (RFC 2920 3.1).
    async fn after_refused_recipients(&mut self) -> After {
        match self.reply(Stage::Data, self.limits.data).await {
            Ok(reply) if reply.code == 354 => {}
            Ok(reply) if reply.code >= 400 && reply.code != 421 => return After::NeedsReset,
            _ => return After::Unusable,
        }
        match self.command(Stage::Data, &["."]).await {
            Ok(reply) if reply.code != 421 => After::NeedsReset,
            _ => After::Unusable,
        }
    }

    async fn submit(&mut self, body: &Body<'_>, refused: Vec<RecipientReply>) -> Result<(Delivery, After), Failure> {
        let step = self.observer.begin(Step::Body);
        let limit = self.limits.body;
        let trouble = match timeout(limit, self.write(body)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Cause::io(error)),
            Err(_) => Some(Cause::TimedOut(limit)),
        };
        let reply = match trouble {
            None => step.note(self.reply(Stage::Body, self.limits.answer).await)?,
            Some(trouble) => step.note(self.reply_to_a_part(trouble).await)?,
        };
        if reply.is_positive() {
            let after = if self.replies.is_empty() { After::Reusable } else { After::Unusable };
            return Ok((Delivery::Accepted { reply: self.replies.owned(reply), refused }, after));
        }
        let is_over = reply.code < 400 || reply.code == 421 || reply.is_cut;
        let after = if is_over { After::Unusable } else { After::NeedsReset };
        Ok((self.ended_by(self.unwanted(Stage::Body, reply)), after))
    }

    /// Writes the message and the final dot, and keeps `may_be_taken` true to what the server may have seen.
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
            self.may_be_taken = true;
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
        self.may_be_taken = true;
        self.wire.flush().await
    }

    /// A relay that hangs up in the middle of a message may have said why. Only a refusal counts.
    async fn reply_to_a_part(&mut self, trouble: Cause) -> Result<SmtpReply, Failure> {
        match timeout(PENDING_REPLY, self.read_reply()).await {
            Ok(Ok(reply)) if reply.code >= 400 => Err(self.unwanted(Stage::Body, reply)),
            _ => Err(Failure::new(Stage::Body, trouble)),
        }
    }
}

fn declined(stage: Stage, reply: Reply, after: After) -> EnvelopeResult {
    EnvelopeResult::Declined(Delivery::NotTaken(Failure::reply(stage, reply)), after)
}
