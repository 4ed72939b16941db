//! One job on its way out: rendered once, with the recipients that this attempt is about, whichever transport takes it. The MIME form is made
//! when a transport wants it, and once only.

use std::{borrow::Cow, sync::OnceLock};

use jiff::Timestamp;
use postrider_schemas::{
    Job,
    address::{EmailAddress, Mailbox},
    job::Attachment,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    ComposeError, Composed, bodies, headers, mime,
    template::{self, Rendered},
};
use crate::policy::route::when::content_bytes;

/// What may take longer than a millisecond or two leaves the thread that serves everything else, from this size of a job on, in octets.
pub const ASIDE_OCTETS: usize = 256 * 1024;

/// A rendered job and the recipients that it is to reach now.
pub struct OutgoingMessage<'a> {
    /// The job.
    pub job: &'a Job,
    /// Envelope indices of the recipients to serve, ascending.
    pub indices: Vec<usize>,
    /// The date of the message.
    pub dated: Timestamp,
    part: Option<u8>,
    is_repeated: bool,
    content: Rendered<'a>,
    mime: OnceLock<Result<Composed, ComposeError>>,
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

/// Envelope indices of the recipients that are still to be served: all where `pending` does not name them.
pub fn indices(job: &Job, pending: Option<&[u8]>) -> Vec<usize> {
    let all = job.recipients().len();
    match pending {
        None => (0..all).collect(),
        Some(list) => list.iter().map(|index| usize::from(*index)).filter(|index| *index < all).collect(),
    }
}

impl<'a> OutgoingMessage<'a> {
    /// Renders the job for the recipients at these envelope indices (all where absent), here and now: for jobs of our own, see [`crate::render`]. `part`
    /// is the number of the part that they are.
    pub fn new(job: &'a Job, pending: Option<&[u8]>, part: Option<u8>, dated: Timestamp) -> Result<Self, ComposeError> {
        Ok(Self::rendered(job, pending, part, dated, template::render(job)?))
    }

    /// The same for a job that was rendered.
    pub fn rendered(
        job: &'a Job,
        pending: Option<&[u8]>,
        part: Option<u8>,
        dated: Timestamp,
        content: Rendered<'a>,
    ) -> Self {
        let indices = indices(job, pending);
        Self { job, indices, dated, part, is_repeated: false, content, mime: OnceLock::new() }
    }

    /// Asks something about the message that takes longer the larger it is. Of a large one a copy is asked, on a thread where that keeps nothing up; its
    /// files are not copied.
    pub async fn aside<T, F>(&self, ask: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&OutgoingMessage<'_>) -> T + Send + 'static,
    {
        if !self.is_large() {
            return ask(self);
        }
        let (job, content) = (self.job.clone(), self.content.owned());
        let (indices, dated, part, is_repeated) = (self.indices.clone(), self.dated, self.part, self.is_repeated);
        let mime = self.mime.clone();
        let asking = tokio::task::spawn_blocking(move || {
            ask(&OutgoingMessage { job: &job, indices, dated, part, is_repeated, content, mime })
        });
        match asking.await {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    fn is_large(&self) -> bool {
        let texts = [Some(self.subject()), self.text(), self.html()].into_iter().flatten().map(str::len).sum::<usize>();
        texts + content_bytes(self.job) >= ASIDE_OCTETS
    }

    /// Makes the message of RFC 5322, which [`Self::mime`] has at hand from then on.
    pub async fn compose(&self) -> Result<&Composed, ComposeError> {
        if self.mime.get().is_none() && self.is_large() {
            let made = self.aside(|message| mime(message.job, &message.content, message.dated)).await;
            // Whoever made it meanwhile made the same.
            let _ = self.mime.set(made);
        }
        self.mime()
    }

    /// The same letter, of which a call was made before that may have been taken.
    #[must_use]
    pub fn repeated(self) -> Self {
        Self { is_repeated: true, ..self }
    }

    /// True where the call must be made as it was made before, alone.
    pub fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    /// The subject.
    pub fn subject(&self) -> &str {
        &self.content.subject
    }

    /// The plain text body.
    pub fn text(&self) -> Option<&str> {
        self.content.text.as_deref()
    }

    /// The HTML body.
    pub fn html(&self) -> Option<&str> {
        self.content.html.as_deref()
    }

    /// The message of RFC 5322. It names every visible recipient of the job, whoever is to be reached now.
    pub fn mime(&self) -> Result<&Composed, ComposeError> {
        self.mime.get_or_init(|| mime(self.job, &self.content, self.dated)).as_ref().map_err(Clone::clone)
    }

    /// The same message with another date and with subject and bodies rewritten: for an API that would take some of it for orders to itself.
    pub fn mime_with(&self, dated: Timestamp, rewrite: impl Fn(&str) -> String) -> Result<Composed, ComposeError> {
        let body = |body: &Option<Cow<'_, str>>| body.as_deref().map(&rewrite).map(Cow::Owned);
        let content = Rendered {
            subject: Cow::Owned(rewrite(&self.content.subject)),
            text: body(&self.content.text),
            html: body(&self.content.html),
        };
        mime(self.job, &content, dated)
    }

    /// The number of the part of the job that the recipients of now are.
    pub fn part(&self) -> Option<u8> {
        self.part
    }

    /// The addresses to reach now.
    pub fn recipients(&self) -> Vec<&'a EmailAddress> {
        let all = self.job.recipients();
        self.indices.iter().map(|index| all[*index].address).collect()
    }

    /// The recipients to reach now, for an API that makes the `To` header of those it sends to and insists on one. Carbon copies are promoted
    /// where nobody else is left, and a single blind copy as well; several blind copies are not, because they would see each other: nothing then.
    pub fn addressees(&self) -> Option<Addressees<'a>> {
        let all = self.job.recipients();
        let mut out = Addressees::default();
        for index in &self.indices {
            let one = all[*index];
            let (from, into) = match one.field {
                postrider_schemas::job::RecipientField::To => (self.job.to(), &mut out.to),
                postrider_schemas::job::RecipientField::Cc => (self.job.cc(), &mut out.cc),
                postrider_schemas::job::RecipientField::Bcc => (self.job.bcc(), &mut out.bcc),
            };
            into.push(&from[one.position]);
        }
        if out.to.is_empty() {
            out.to = std::mem::take(&mut out.cc);
        }
        if out.to.is_empty() && out.bcc.len() == 1 {
            out.to = std::mem::take(&mut out.bcc);
        }
        (!out.to.is_empty()).then_some(out)
    }

    /// Files that the HTML body shows by `cid:`, then all others.
    pub fn files(&self) -> (Vec<&'a Attachment>, Vec<&'a Attachment>) {
        bodies::inline_and_attached(self.job, self.html())
    }

    /// Extra headers and those for unsubscribing, not encoded, in order.
    pub fn headers(&self) -> Vec<(String, String)> {
        let unsubscribe = self.job.list_unsubscribe().map(headers::unsubscribe_lines).unwrap_or_default();
        let extra = self.job.headers().iter().map(|one| (one.name().to_owned(), one.value().to_owned()));
        unsubscribe.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(extra).collect()
    }

    /// The key by which a provider recognises this call when it is repeated: made of the tenant, the job id and, where they are not all of the
    /// job's, the recipients. Without the tenant a provider would take the job of one for a repetition of another's.
    pub fn key(&self) -> Uuid {
        let mut hasher = Sha256::new();
        hasher.update(self.job.tenant().as_str());
        hasher.update([0]);
        hasher.update(self.job.id().0.as_bytes());
        if self.indices.len() != self.job.recipients().len() {
            for index in &self.indices {
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

    #[track_caller]
    fn check(job: &Job, pending: Option<&[u8]>, expected: Option<&str>) {
        let message = OutgoingMessage::new(job, pending, None, Timestamp::UNIX_EPOCH).unwrap();
        let names = |list: &[&Mailbox]| list.iter().map(|one| one.address().local()).collect::<Vec<_>>().join(",");
        let shown = message.addressees().map(|a| format!("{}/{}/{}", names(&a.to), names(&a.cc), names(&a.bcc)));
        assert_eq!(shown.as_deref(), expected);
    }

    #[test]
    fn an_api_gets_the_recipients_of_now_and_at_least_one_to() {
        check(&job(&["a", "b"], &["c"], &["d"]), None, Some("a,b/c/d"));
        check(&job(&["a", "b"], &["c"], &["d"]), Some(&[1, 3]), Some("b//d"));
        check(&job(&["a"], &["b", "c"], &["d"]), Some(&[1, 2, 3]), Some("b,c//d"));
        check(&job(&[], &[], &["d"]), None, Some("d//"));
        check(&job(&[], &[], &["d", "e"]), None, None);
    }

    #[tokio::test]
    async fn a_large_letter_is_asked_and_composed_on_another_thread_and_a_small_one_here() {
        let here = std::thread::current().id();
        for (octets, is_here) in [(1000, true), (ASIDE_OCTETS, false)] {
            let fields = JobV1 { text: Some("x\n".repeat(octets / 2)), ..JobV1::from(&job(&["a"], &[], &[])) };
            let job = fields.parse(&JobLimits::DEFAULT).unwrap();
            let message = OutgoingMessage::new(&job, None, None, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(message.aside(|_| std::thread::current().id()).await == here, is_here, "{octets}");
            assert!(
                message.compose().await.unwrap() == message.aside(|copy| copy.mime().cloned()).await.as_ref().unwrap()
            );
        }
    }

    #[test]
    fn the_key_is_that_of_the_tenants_job_and_another_one_for_some_of_its_recipients() {
        let job = job(&["a", "b"], &[], &[]);
        let mut document = postrider_schemas::wire::decode_v1(&postrider_schemas::wire::encode(&job)).unwrap();
        document.tenant = Some("other".to_owned());
        let other = document.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(other.id(), job.id());
        let whole = |job: &Job| OutgoingMessage::new(job, None, None, Timestamp::UNIX_EPOCH).unwrap().key();
        assert_ne!(whole(&other), whole(&job));
        let key = |pending: Option<&[u8]>, part| {
            OutgoingMessage::new(&job, pending, part, Timestamp::UNIX_EPOCH).unwrap().key()
        };
        assert_eq!(key(None, None), whole(&job));
        assert_ne!(key(Some(&[0]), Some(1)), key(Some(&[1]), Some(2)));
        assert_eq!(key(Some(&[0]), Some(1)), key(Some(&[0]), Some(1)));
        assert_ne!(key(Some(&[0]), None), whole(&job));
        let mut fewer = OutgoingMessage::new(&job, None, None, Timestamp::UNIX_EPOCH).unwrap();
        fewer.indices.retain(|index| *index == 0);
        assert_eq!(fewer.key(), key(Some(&[0]), None), "the recipients of the call count, however they were chosen");
    }
}
