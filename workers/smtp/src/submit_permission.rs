//! The permission to submit: asked for while the envelope is under way, needed before the message is.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use tokio::time::timeout;

/// A future that says whether this worker may still submit, and its answer once it is there.
pub struct SubmitPermission<'a, F> {
    future: Pin<&'a mut F>,
    is_asked: bool,
    answer: Option<bool>,
}

impl<'a, F: Future<Output = bool>> SubmitPermission<'a, F> {
    /// Not asked yet: the future is polled by the methods below only.
    pub fn new(future: Pin<&'a mut F>) -> Self {
        Self { future, is_asked: false, answer: None }
    }

    /// The answer; at once when it is known already. May be cancelled and called again.
    pub async fn granted(&mut self) -> bool {
        if let Some(answer) = self.answer {
            return answer;
        }
        self.is_asked = true;
        let answer = self.future.as_mut().await;
        self.answer = Some(answer);
        answer
    }

    /// Runs `work` while the answer is on its way; `None`, with `work` dropped, as soon as the answer is no.
    pub async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        tokio::select! {
            // The work first: its first step is a write that the relay can be busy with meanwhile.
            biased;
            done = &mut work => Some(done),
            is_granted = self.granted() => if is_granted { Some(work.await) } else { None },
        }
    }

    /// Once asked, the future is brought to its end (within `limit`), so that what it does elsewhere is over before the
    /// outcome is acted upon. True when the answer is no.
    pub async fn is_denied_after_all(&mut self, limit: Duration) -> bool {
        self.is_asked && timeout(limit, self.granted()).await.is_ok_and(|is_granted| !is_granted)
    }
}
