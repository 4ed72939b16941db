//! Who watches a session: its steps, for traces and timings, and the certificate that the server shows.

use crate::failure::Failure;

/// A step of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Name resolution and TCP connect.
    Connect,
    /// The TLS handshake; with STARTTLS, its command too.
    Tls,
    /// The greeting and EHLO.
    Hello,
    /// AUTH.
    Auth,
    /// MAIL, RCPT and DATA in one write.
    Envelope,
    /// MAIL alone.
    Mail,
    /// RCPT, for all recipients.
    Rcpt,
    /// DATA alone.
    Data,
    /// The message and the answer to its final dot.
    Body,
}

/// Watches a session. `()` watches nothing.
pub trait Observer {
    /// Held while a step lasts. It is dropped when the step ends, also when the session is dropped in the middle of it.
    type Span: Span;

    /// A step begins.
    fn begin(&self, step: Step) -> Self::Span;

    /// The server showed this certificate, in DER form, and it was accepted.
    fn certificate(&self, _der: &[u8]) {}
}

/// A step under way.
pub trait Span {
    /// The step failed. It ends next.
    fn failed(&self, failure: &Failure);

    /// Passes a result on, and tells of a failure.
    fn note<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.inspect_err(|failure| self.failed(failure))
    }
}

impl Observer for () {
    type Span = ();

    fn begin(&self, _step: Step) {}
}

impl Span for () {
    fn failed(&self, _failure: &Failure) {}
}
