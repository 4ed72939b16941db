//! What a client has said so far, and the answers. Pure: whether a key is right and what becomes of a message is told from outside.

use postrider_schemas::EmailAddress;

use super::command::Command;

/// Wrong commands after which the connection ends.
const ERRORS_MAX: u32 = 20;
/// Wrong keys after which the connection ends.
const WRONG_KEYS_MAX: u32 = 3;

/// How a session may be.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// STARTTLS is possible.
    pub has_tls: bool,
    /// A key may be shown without TLS.
    pub plaintext_auth: bool,
    /// Octets of a message.
    pub size: usize,
    /// Recipients of a message.
    pub recipients: usize,
}

/// Sender and recipients of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The sender; empty for none.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this.
    Say(String),
    /// Say this, and end.
    End(String),
    /// Say this, and go over to TLS.
    StartTls(String),
    /// Ask for a key by this mechanism, with the first response where it is there.
    Auth(Mechanism, Option<String>),
    /// Say this, and read a message up to its dot.
    ReadData(String),
    /// Read so many octets. Without a recipient they are let go.
    ReadChunk {
        /// Octets.
        size: usize,
        /// The message ends with them.
        is_last: bool,
        /// They belong to a message.
        is_wanted: bool,
    },
}

/// Ways to show a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// PLAIN
    Plain,
    /// LOGIN
    Login,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    policy: Policy,
    is_encrypted: bool,
    is_greeted: bool,
    is_authenticated: bool,
    mail: Option<Transaction>,
    errors: u32,
    wrong_keys: u32,
}

/// A message under way.
#[derive(Debug, Default)]
struct Transaction {
    envelope: Envelope,
    /// Chunks of the message have come: DATA may not follow, nor a further recipient.
    has_chunks: bool,
}

fn say(text: &str) -> Action {
    Action::Say(text.to_owned())
}

impl Session {
    /// A session that begins.
    pub fn new(policy: Policy, is_encrypted: bool) -> Self {
        Self { policy, is_encrypted, is_greeted: false, is_authenticated: false, mail: None, errors: 0, wrong_keys: 0 }
    }

    /// Goes on behind TLS: everything that was said before is forgotten.
    pub fn encrypted(&mut self) {
        *self = Self { errors: self.errors, wrong_keys: self.wrong_keys, ..Self::new(self.policy, true) };
    }

    /// A key was shown and is right.
    pub fn authenticated(&mut self) -> Action {
        self.is_authenticated = true;
        say("235 2.7.0 OK")
    }

    /// A key was shown and is wrong.
    pub fn wrong_key(&mut self, why: &str) -> Action {
        self.is_authenticated = false;
        self.wrong_keys += 1;
        if self.wrong_keys >= WRONG_KEYS_MAX {
            return Action::End(format!("421 4.7.0 {why}"));
        }
        self.refuse(&format!("535 5.7.8 {why}"))
    }

    /// A message in chunks is under way.
    pub fn has_chunks(&self) -> bool {
        self.mail.as_ref().is_some_and(|mail| mail.has_chunks)
    }

    /// The envelope of the message that was read. The session goes on with another one.
    pub fn take_envelope(&mut self) -> Envelope {
        self.mail.take().unwrap_or_default().envelope
    }

    /// Something was wrong. After many of these the connection ends.
    pub fn refuse(&mut self, text: &str) -> Action {
        self.errors += 1;
        if self.errors > ERRORS_MAX { Action::End("421 4.7.0 Too many errors".to_owned()) } else { say(text) }
    }

    /// Answers a command.
    pub fn command(&mut self, command: Command) -> Action {
        match command {
            Command::Ehlo => {
                self.begin();
                Action::Say(self.offers())
            }
            Command::Helo => {
                self.begin();
                say("250 postrider")
            }
            Command::Quit => Action::End("221 2.0.0 Bye".to_owned()),
            Command::Noop => say("250 2.0.0 OK"),
            Command::Vrfy => say("252 2.5.0 Send a message and see"),
            Command::Rset => {
                self.take_envelope();
                say("250 2.0.0 OK")
            }
            Command::StartTls if self.is_encrypted || !self.policy.has_tls => {
                self.refuse("502 5.5.1 STARTTLS is not offered here")
            }
            Command::StartTls => Action::StartTls("220 2.0.0 Go ahead".to_owned()),
            Command::Bdat { size, is_last } => self.chunk(size, is_last),
            _ if !self.is_greeted => self.refuse("503 5.5.1 Say EHLO first"),
            Command::Auth { mechanism, initial } => self.auth(&mechanism, initial),
            _ if !self.is_authenticated => {
                self.refuse("530 5.7.0 Authenticate first: any user name, an API key as the password")
            }
            Command::Mail { from, size } => self.mail(from, size),
            Command::Rcpt { to } => self.recipient(to),
            Command::Data if self.has_chunks() => {
                self.refuse("503 5.5.1 A message that began with BDAT goes on with BDAT")
            }
            Command::Data if self.has_recipients() => {
                Action::ReadData("354 End with a dot on a line of its own".to_owned())
            }
            Command::Data => self.refuse("503 5.5.1 Say MAIL and RCPT first"),
        }
    }

    fn begin(&mut self) {
        self.is_greeted = true;
        self.take_envelope();
    }

    fn has_recipients(&self) -> bool {
        self.mail.as_ref().is_some_and(|mail| !mail.envelope.to.is_empty())
    }

    fn may_authenticate(&self) -> bool {
        self.is_encrypted || self.policy.plaintext_auth
    }

    fn offers(&self) -> String {
        let mut offers = vec!["postrider".to_owned(), "PIPELINING".to_owned(), format!("SIZE {}", self.policy.size)];
        offers.extend(["8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES"].map(str::to_owned));
        if self.policy.has_tls && !self.is_encrypted {
            offers.push("STARTTLS".to_owned());
        }
        if self.may_authenticate() {
            offers.push("AUTH PLAIN LOGIN".to_owned());
        }
        let last = offers.len() - 1;
        let line = |(n, offer): (usize, String)| format!("250{}{offer}", if n == last { ' ' } else { '-' });
        offers.into_iter().enumerate().map(line).collect::<Vec<_>>().join("\r\n")
    }

    fn auth(&mut self, mechanism: &str, initial: Option<String>) -> Action {
        if !self.may_authenticate() {
            return self.refuse("538 5.7.11 Say STARTTLS first: a key is not shown in the clear");
        }
        if self.is_authenticated || self.mail.is_some() {
            return self.refuse("503 5.5.1 AUTH is not possible now");
        }
        match mechanism {
            "PLAIN" => Action::Auth(Mechanism::Plain, initial),
            "LOGIN" => Action::Auth(Mechanism::Login, initial),
            _ => self.refuse("504 5.5.4 The mechanisms are PLAIN and LOGIN"),
        }
    }

    fn mail(&mut self, from: String, size: Option<u64>) -> Action {
        if self.mail.is_some() {
            return self.refuse("503 5.5.1 A message is under way; RSET ends it");
        }
        if size.is_some_and(|size| size > self.policy.size as u64) {
            return self.refuse("552 5.3.4 The message is too large");
        }
        if !from.is_empty() && EmailAddress::parse(&from).is_err() {
            return self.refuse("553 5.1.7 The address is malformed");
        }
        self.mail = Some(Transaction { envelope: Envelope { from, to: Vec::new() }, has_chunks: false });
        say("250 2.1.0 OK")
    }

    fn recipient(&mut self, to: String) -> Action {
        match &mut self.mail {
            Some(mail) if mail.has_chunks => self.refuse("503 5.5.1 The message has begun"),
            None => self.refuse("503 5.5.1 Say MAIL first"),
            // No error of the client: it learns the number in this way (RFC 5321 4.5.3.1.10).
            Some(mail) if mail.envelope.to.len() >= self.policy.recipients => {
                say("452 4.5.3 Too many recipients; send the others in another message")
            }
            Some(_) if EmailAddress::parse(&to).is_err() => self.refuse("553 5.1.3 The address is malformed"),
            Some(mail) => {
                mail.envelope.to.push(to);
                say("250 2.1.5 OK")
            }
        }
    }

    /// The octets of a chunk come whatever is answered, so they are read in any case, up to a bound.
    fn chunk(&mut self, size: u64, is_last: bool) -> Action {
        match usize::try_from(size).ok().filter(|size| *size <= self.policy.size) {
            None => Action::End("552 5.3.4 The message is too large".to_owned()),
            Some(size) => {
                let is_wanted = self.is_authenticated && self.has_recipients();
                if let Some(mail) = &mut self.mail {
                    mail.has_chunks |= is_wanted;
                }
                Action::ReadChunk { size, is_last, is_wanted }
            }
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
