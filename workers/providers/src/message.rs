//! A message as a provider's request is made of it: plain data, and the MIME form for those that want it.

use jiff::Timestamp;
use postrider_schemas::{
    Job,
    address::{EmailAddress, Mailbox},
    job::{Attachment, RecipientField},
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A rendered job and the recipients that it is to reach now.
pub struct Message<'a> {
    /// The job.
    pub job: &'a Job,
    /// Envelope indices of the recipients to serve, ascending.
    pub indices: &'a [usize],
    /// The date of the message.
    pub dated: Timestamp,
    /// The number of the part of the job that the recipients of now are.
    pub part: Option<u8>,
    /// The subject.
    pub subject: &'a str,
    /// The plain text body.
    pub text: Option<&'a str>,
    /// The HTML body.
    pub html: Option<&'a str>,
    /// Extra headers and those for unsubscribing, not encoded, in order; of a whole message all that it has.
    pub headers: Vec<(String, String)>,
    /// Files that the HTML body shows by `cid:`.
    pub inline: Vec<&'a Attachment>,
    /// All other files.
    pub attached: Vec<&'a Attachment>,
    /// Makes the MIME form.
    pub mime: &'a dyn MimeSource,
}

/// A message of RFC 5322.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mime {
    /// Its octets.
    pub message: Vec<u8>,
    /// An address has a part before the `@` that is not ASCII.
    pub needs_smtputf8: bool,
}

/// Makes the MIME form of a message. An error says why it cannot be made.
pub trait MimeSource {
    /// The message of RFC 5322. It names every visible recipient of the job, whoever is to be reached now.
    fn mime(&self) -> Result<Mime, String>;

    /// The same message with another date and with subject and bodies rewritten: for an API that would take some of it for orders to itself.
    fn mime_with(&self, dated: Timestamp, rewrite: &dyn Fn(&str) -> String) -> Result<Mime, String>;
}

/// Recipients as the fields of a provider's API name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addressees<'a> {
    /// At least one.
    pub to: Vec<&'a Mailbox>,
    /// Carbon copies.
    pub cc: Vec<&'a Mailbox>,
    /// Blind copies.
    pub bcc: Vec<&'a Mailbox>,
}

/// A recipient as a call names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecipient {
    /// Position in the job's envelope.
    pub index: usize,
    /// The field that the call has it in.
    pub field: RecipientField,
    /// Position in that field.
    pub position: usize,
    /// The address, in lower case.
    pub address: String,
}

impl<'a> Message<'a> {
    /// The addresses to reach now.
    pub fn recipients(&self) -> Vec<&'a EmailAddress> {
        let all = self.job.recipients();
        self.indices.iter().map(|index| all[*index].address).collect()
    }

    /// True where the sender or a recipient of now has a part before the `@` that is not ASCII.
    pub fn has_international_envelope(&self) -> bool {
        let addresses = self.job.sender().into_iter().chain(self.recipients());
        { addresses }.any(EmailAddress::needs_smtputf8)
    }

    /// The recipients to reach now, for an API that makes the `To` header of those it sends to and insists on one. Carbon copies are promoted
    /// where nobody else is left, and a single blind copy as well; several blind copies are not, because they would see each other: nothing then.
    pub fn addressees(&self) -> Option<Addressees<'a>> {
        let all = self.job.recipients();
        let mut out = Addressees::default();
        for index in self.indices {
            let one = all[*index];
            let into = match one.field {
                RecipientField::To => &mut out.to,
                RecipientField::Cc => &mut out.cc,
                RecipientField::Bcc => &mut out.bcc,
            };
            into.push(one.mailbox);
        }
        if out.to.is_empty() {
            out.to = std::mem::take(&mut out.cc);
        }
        if out.to.is_empty() && out.bcc.len() == 1 {
            out.to = std::mem::take(&mut out.bcc);
        }
        (!out.to.is_empty()).then_some(out)
    }

    /// The same recipients with their envelope indices, to be found again in an answer.
    pub fn call_recipients(&self) -> Vec<CallRecipient> {
        let all = self.job.recipients();
        let index_of =
            |mailbox: &Mailbox| self.indices.iter().copied().find(|index| std::ptr::eq(all[*index].mailbox, mailbox));
        let blind = || Addressees {
            bcc: self.indices.iter().map(|index| all[*index].mailbox).collect(),
            ..Addressees::default()
        };
        let addressees = self.addressees().unwrap_or_else(blind);
        let fields = [
            (RecipientField::To, addressees.to),
            (RecipientField::Cc, addressees.cc),
            (RecipientField::Bcc, addressees.bcc),
        ];
        let mut list = Vec::with_capacity(self.indices.len());
        for (field, mailboxes) in fields {
            for (position, mailbox) in mailboxes.into_iter().enumerate() {
                let address = mailbox.address().to_string().to_lowercase();
                list.extend(index_of(mailbox).map(|index| CallRecipient { index, field, position, address }));
            }
        }
        list
    }

    /// The key by which a provider recognises this call when it is repeated: made of the tenant, the job id and, where they are not all of the
    /// job's, the recipients. Without the tenant a provider would take the job of one for a repetition of another's.
    pub fn key(&self) -> Uuid {
        let mut hasher = Sha256::new();
        hasher.update(self.job.tenant().as_str());
        hasher.update([0]);
        hasher.update(self.job.id().0.as_bytes());
        if self.indices.len() != self.job.recipients().len() {
            for index in self.indices {
                hasher.update(index.to_be_bytes());
            }
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize()[..16]);
        // Version 8: a value of our own making.
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;
    use crate::fields::testing::NoMime;

    fn job(to: &[&str], cc: &[&str], bcc: &[&str]) -> Job {
        let list = |names: &[&str]| names.iter().map(|name| format!("{name}@dest.example").as_str().into()).collect();
        JobV1 {
            from: "a@shop.example".into(),
            to: list(to),
            cc: list(cc),
            bcc: list(bcc),
            text: Some(String::new()),
            ..JobV1::default()
        }
        .parse(&JobLimits::DEFAULT)
        .unwrap()
    }

    fn message<'a>(job: &'a Job, indices: &'a [usize]) -> Message<'a> {
        let (headers, inline, attached) = Default::default();
        let (dated, part, text, html) = (Timestamp::UNIX_EPOCH, None, None, None);
        Message { job, indices, dated, part, subject: "", text, html, headers, inline, attached, mime: &NoMime }
    }

    #[track_caller]
    fn check(job: &Job, indices: &[usize], expected: Option<&str>) {
        let names = |list: &[&Mailbox]| list.iter().map(|one| one.address().local()).collect::<Vec<_>>().join(",");
        let addressees = message(job, indices).addressees();
        let shown = addressees.map(|a| format!("{}/{}/{}", names(&a.to), names(&a.cc), names(&a.bcc)));
        assert_eq!(shown.as_deref(), expected);
    }

    #[test]
    fn an_api_gets_the_recipients_of_now_and_at_least_one_to() {
        check(&job(&["a", "b"], &["c"], &["d"]), &[0, 1, 2, 3], Some("a,b/c/d"));
        check(&job(&["a", "b"], &["c"], &["d"]), &[1, 3], Some("b//d"));
        check(&job(&["a"], &["b", "c"], &["d"]), &[1, 2, 3], Some("b,c//d"));
        check(&job(&[], &[], &["d"]), &[0], Some("d//"));
        check(&job(&[], &[], &["d", "e"]), &[0, 1], None);
    }

    #[test]
    fn the_key_is_that_of_the_tenants_job_and_another_one_for_some_of_its_recipients() {
        let job = job(&["a", "b"], &[], &[]);
        let mut document = postrider_schemas::wire::decode_v1(&postrider_schemas::wire::encode(&job)).unwrap();
        document.tenant = Some("other".to_owned());
        let other = document.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(other.id(), job.id());
        let key = |indices: &[usize]| message(&job, indices).key();
        assert_ne!(message(&other, &[0, 1]).key(), key(&[0, 1]));
        assert_ne!(key(&[0]), key(&[1]));
        assert_ne!(key(&[0]), key(&[0, 1]));
        assert_eq!(key(&[0]), key(&[0]));
    }
}
