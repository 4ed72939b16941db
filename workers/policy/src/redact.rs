//! Secrets out of text: a relay, a provider or a machine in between may repeat what it was sent, and answers, errors and log lines are read by others
//! than those who may know a password. One mechanism for SMTP, HTTP, the broker and the store.
//!
//! Whoever holds a secret tells it here ([`learn`]); answers are cleaned when they are made, errors and log lines when they leave the process. A secret is
//! found as it is, URL-encoded, as JSON writes it, and within base64 at each of the three ways in which it may stand there, which covers HTTP
//! `Basic` and every SASL mechanism that sends it.

use std::{
    borrow::Cow,
    sync::{LazyLock, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use memchr::memmem;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

/// What stands for a secret. Holds no letter, so that no secret is found in it.
const IN_ITS_PLACE: &str = "[***]";
/// A shorter secret is none: every other word would have to go.
const LENGTH_MIN: usize = 4;
/// Fewer characters of base64 are found anywhere.
const BASE64_MIN: usize = 6;
/// So many forms are known at most; the oldest ones go first. Temporary keys of a cloud come each hour.
const FORMS_MAX: usize = 2048;

/// Known secrets, in every form in which they are looked for.
#[derive(Debug, Clone, Default)]
pub struct Redactor(Vec<Form>);

#[derive(Clone, PartialEq, Eq)]
struct Form {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Wherever it stands.
    Anywhere,
    /// Where no letter or digit is next to it: it is a plain word.
    Word,
    /// Together with all of the base64 around it.
    Base64,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Form").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Redactor {
    /// Looks for this secret too.
    pub fn learn(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.len() < LENGTH_MIN {
            return;
        }
        // A password such as "transport" must not take the names out of log lines, nor the middle out of words.
        let is_plain = secret.bytes().all(|byte| byte.is_ascii_lowercase());
        let kind = if is_plain || secret.len() < 8 { Kind::Word } else { Kind::Anywhere };
        self.add(secret.to_owned(), kind);
        let encoded = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
        self.add(encoded.to_ascii_lowercase(), kind);
        self.add(encoded, kind);
        self.add(serde_json::to_string(secret).unwrap_or_default().trim_matches('"').to_owned(), kind);
        for before in 0..3 {
            let core = core(secret, before);
            if core.len() >= BASE64_MIN {
                self.add(core.replace('+', "-").replace('/', "_"), Kind::Base64);
                self.add(core, Kind::Base64);
            }
        }
    }

    fn add(&mut self, text: String, kind: Kind) {
        let form = Form { text, kind };
        if !self.0.contains(&form) {
            self.0.push(form);
            let surplus = self.0.len().saturating_sub(FORMS_MAX);
            self.0.drain(..surplus);
        }
    }

    /// The text without secrets, and without what stands before the host in URLs.
    pub fn clean<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut cut: Vec<(usize, usize)> = Vec::new();
        for form in &self.0 {
            let found = memmem::find_iter(text.as_bytes(), form.text.as_bytes());
            cut.extend(found.filter_map(|at| span(text, at, at + form.text.len(), form.kind)));
        }
        cut.extend(memmem::find_iter(text.as_bytes(), "://").filter_map(|at| user_part(text, at + 3)));
        if cut.is_empty() {
            return Cow::Borrowed(text);
        }
        cut.sort_unstable();
        let (mut out, mut end) = (String::with_capacity(text.len()), 0);
        for (from, to) in cut {
            if from >= end {
                out.push_str(&text[end..from]);
                out.push_str(IN_ITS_PLACE);
            }
            end = end.max(to);
        }
        out.push_str(&text[end..]);
        Cow::Owned(out)
    }
}

/// The part of a secret's base64 that does not depend on what stands around it, with so many bytes (modulo three) before it.
fn core(secret: &str, before: usize) -> String {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(secret.as_bytes());
    let encoded = STANDARD_NO_PAD.encode(&bytes);
    let (start, end) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    encoded.get(start..end).unwrap_or_default().to_owned()
}

/// What is to be cut out for something that was found.
fn span(text: &str, from: usize, to: usize, kind: Kind) -> Option<(usize, usize)> {
    match kind {
        Kind::Anywhere => Some((from, to)),
        Kind::Word => {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let is_word = !text[..from].ends_with(is_part) && !text[to..].starts_with(is_part);
            is_word.then_some((from, to))
        }
        Kind::Base64 => {
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=');
            let before = text[..from].len() - text[..from].trim_end_matches(is_part).len();
            let after = text[to..].len() - text[to..].trim_start_matches(is_part).len();
            Some((from - before, to + after))
        }
    }
}

/// The user and password of a URL whose authority begins at `from`.
fn user_part(text: &str, from: usize) -> Option<(usize, usize)> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>' | '`' | ')');
    let authority = text[from..].split(ends).next()?;
    let at = authority.rfind('@').filter(|at| *at > 0)?;
    Some((from, from + at))
}

/// What this process knows.
static KNOWN: LazyLock<ArcSwap<Redactor>> = LazyLock::new(ArcSwap::default);
static LEARNING: Mutex<()> = Mutex::new(());

/// From now on these are no part of an answer, an error or a log line of this process.
pub fn learn<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) {
    let _one_at_a_time = LEARNING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut known = KNOWN.load().as_ref().clone();
    for secret in secrets {
        known.learn(secret.expose_secret());
    }
    KNOWN.store(known.into());
}

/// The text without any secret that this process knows.
pub fn clean(text: &str) -> Cow<'_, str> {
    KNOWN.load().clean(text)
}

/// The secrets of a URL: its password, or its user where that stands alone, which is a token then. As it is written and as it is meant.
pub fn of_url(url: &str) -> Vec<SecretString> {
    let Ok(url) = Url::parse(url) else { return Vec::new() };
    let secret = url.password().unwrap_or_else(|| url.username());
    let decoded = percent_decode_str(secret).decode_utf8_lossy().into_owned();
    [secret.to_owned(), decoded].into_iter().filter(|text| !text.is_empty()).map(SecretString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "s3cr+t/p@ss w\"rd";

    fn knows(secrets: &[&str]) -> Redactor {
        let mut redactor = Redactor::default();
        secrets.iter().for_each(|secret| redactor.learn(secret));
        redactor
    }

    #[test]
    fn no_form_of_a_secret_stays_in_a_text() {
        let redactor = knows(&[SECRET]);
        let url = utf8_percent_encode(SECRET, NON_ALPHANUMERIC).to_string();
        let sasl = |text: String| STANDARD_NO_PAD.encode(text);
        for form in [
            SECRET.to_owned(),
            url.to_ascii_lowercase(),
            url,
            serde_json::to_string(SECRET).unwrap(),
            sasl(SECRET.to_owned()),
            sasl(format!("\0app\0{SECRET}")),
            sasl(format!("\0user\0{SECRET}")),
            sasl(format!("\0users\0{SECRET}")),
            sasl(format!("user=app\x01auth=Bearer {SECRET}\x01\x01")),
            sasl(format!("api:{SECRET}")),
        ] {
            let shown = redactor.clean(&format!("535 no: AUTH {form}, again {form}.")).into_owned();
            assert_eq!(shown.replace('"', ""), "535 no: AUTH [***], again [***].", "{form}");
            assert_eq!(redactor.clean(&shown), shown, "what stands for a secret stays");
        }
    }

    #[test]
    fn a_plain_word_goes_only_where_it_stands_alone() {
        let redactor = knows(&["transport", "ab", "", "hunter2"]);
        let text = "transports ab: \"transport\" hunter2, hunter22";
        assert_eq!(redactor.clean(text), "transports ab: \"[***]\" [***], hunter22");
    }

    #[test]
    fn the_user_part_of_a_url_goes_whoever_it_belongs_to() {
        let redactor = Redactor::default();
        for (text, expected) in [
            ("amqp://user:pa%2fss@host:5672/%2f: refused", "amqp://[***]@host:5672/%2f: refused"),
            ("redis://:pass@host", "redis://[***]@host"),
            ("see https://host/a@b and <http://token@proxy>", "see https://host/a@b and <http://[***]@proxy>"),
            ("ada@customer.example", "ada@customer.example"),
        ] {
            assert_eq!(redactor.clean(text), expected);
        }
    }

    #[test]
    fn the_secret_of_a_url_is_its_password_or_a_user_that_stands_alone() {
        let of = |url: &str| of_url(url).iter().map(|one| one.expose_secret().to_owned()).collect::<Vec<_>>();
        assert_eq!(of("amqp://app:p%40ss@host"), ["p%40ss", "p@ss"]);
        assert_eq!(of("http://token@proxy:3128"), ["token", "token"]);
        assert_eq!(of("embedded:file.db"), Vec::<String>::new());
    }

    #[test]
    fn what_is_known_has_a_bound() {
        let mut redactor = Redactor::default();
        (0..2000).for_each(|n| redactor.learn(&format!("a rather long secret {n}")));
        assert!(redactor.0.len() <= FORMS_MAX, "{}", redactor.0.len());
        assert_eq!(redactor.clean("a rather long secret 1999"), "[***]");
    }
}
