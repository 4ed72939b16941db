//! One job on its way out: rendered once, with the recipients that this attempt is about, whichever transport takes it. The MIME form is made
//! when a transport wants it, and once only.

use std::{borrow::Cow, sync::OnceLock};

use jiff::Timestamp;
use postrider_providers::message::{Message, Mime, MimeSource};
use postrider_schemas::{Job, address::EmailAddress};

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

    /// The addresses to reach now.
    pub fn recipients(&self) -> Vec<&'a EmailAddress> {
        let all = self.job.recipients();
        self.indices.iter().map(|index| all[*index].address).collect()
    }

    /// Extra headers and those for unsubscribing, not encoded, in order; of a whole message all that it has.
    fn headers(&self) -> Vec<(String, String)> {
        if let Some(raw) = self.job.raw() {
            return raw.headers().collect();
        }
        let unsubscribe = self.job.list_unsubscribe().map(headers::unsubscribe_lines).unwrap_or_default();
        let extra = self.job.headers().iter().map(|one| (one.name().to_owned(), one.value().to_owned()));
        unsubscribe.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(extra).collect()
    }

    /// The message as plain data, for the request of a provider.
    pub fn view(&self) -> Message<'_> {
        let (inline, attached) = bodies::inline_and_attached(self.job, self.html());
        Message {
            job: self.job,
            indices: &self.indices,
            dated: self.dated,
            part: self.part,
            subject: self.subject(),
            text: self.text(),
            html: self.html(),
            headers: self.headers(),
            inline,
            attached,
            mime: self,
        }
    }
}

impl MimeSource for OutgoingMessage<'_> {
    fn mime(&self) -> Result<Mime, String> {
        Self::mime(self).map(mime_of).map_err(|error| error.to_string())
    }

    fn mime_with(&self, dated: Timestamp, rewrite: &dyn Fn(&str) -> String) -> Result<Mime, String> {
        Self::mime_with(self, dated, rewrite).as_ref().map(mime_of).map_err(ToString::to_string)
    }
}

fn mime_of(composed: &Composed) -> Mime {
    Mime { message: composed.message.clone(), needs_smtputf8: composed.needs_smtputf8 }
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;

    #[tokio::test]
    async fn a_large_letter_is_asked_and_composed_on_another_thread_and_a_small_one_here() {
        let here = std::thread::current().id();
        for (octets, is_here) in [(1000, true), (ASIDE_OCTETS, false)] {
            let (from, to) = ("a@shop.example".into(), vec!["b@dest.example".into()]);
            let fields = JobV1 { from, to, text: Some("x\n".repeat(octets / 2)), ..JobV1::default() };
            let job = fields.parse(&JobLimits::DEFAULT).unwrap();
            let message = OutgoingMessage::new(&job, None, None, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(message.aside(|_| std::thread::current().id()).await == here, is_here, "{octets}");
            assert!(
                message.compose().await.unwrap() == message.aside(|copy| copy.mime().cloned()).await.as_ref().unwrap()
            );
        }
    }
}
