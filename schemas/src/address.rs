//! Addresses, parsed once. What these types hold can be written into an SMTP envelope and a header as it is.

use std::fmt;

/// A reason why an address was refused. Never contains the address itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `@`.
    #[error("an address needs an @")]
    NoAt,
    /// The part before the `@` is empty or longer than 64 octets.
    #[error("the part before the @ must have 1 to 64 octets")]
    LocalLength,
    /// The part before the `@` is neither a dot-atom nor a quoted string (RFC 5321 4.1.2, RFC 6531 for UTF-8).
    #[error("the part before the @ holds a character or a dot where none may be")]
    Local,
    /// The part before the `@` holds a character that nobody sees: a zero-width space, a soft hyphen, a bidi control.
    #[error("the part before the @ holds an invisible or private character, such as a zero-width space")]
    Invisible,
    /// There is more than one address where one is expected.
    #[error("there is more than one address here; give each an entry of its own")]
    Several,
    /// The domain is not a valid host name, after IDNA processing (UTS 46, STD3 rules).
    #[error("the domain is not a valid internationalised domain name")]
    Domain,
    /// Longer than 254 octets (RFC 5321 4.5.3.1.3).
    #[error("an address has at most 254 octets")]
    Length,
    /// The display name holds a control character such as CR, LF or NUL.
    #[error("the display name holds a control character (a line break, for example)")]
    Name,
    /// The display name is too long.
    #[error("the display name has more than {NAME_OCTETS_MAX} octets")]
    NameLength,
    /// `Name <address>` without its closing bracket, or with text behind it.
    #[error("expected `address` or `Name <address>`")]
    Form,
}

/// Longest display name, in octets.
pub const NAME_OCTETS_MAX: usize = 4096;
/// Blanks around an address or a name mean nothing.
const BLANKS: [char; 2] = [' ', '\t'];

/// A domain name in its ASCII (A-label) form, lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

impl Domain {
    /// Longest text that is looked at, in octets. A name has at most 253, and no letter has more than four octets.
    const TEXT_MAX: usize = 253 * 4;

    /// Accepts an internationalised name and keeps its ASCII form.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > Self::TEXT_MAX {
            return Err(AddressError::Domain);
        }
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| AddressError::Domain)?;
        if ascii.is_empty() || ascii.ends_with('.') {
            return Err(AddressError::Domain);
        }
        Ok(Self(ascii.into_boxed_str()))
    }

    /// The ASCII form, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mail address: a dot-atom or a quoted string before the `@` (UTF-8 allowed), an ASCII domain behind it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EmailAddress {
    local: Box<str>,
    domain: Domain,
}

impl EmailAddress {
    /// Longest address, in octets.
    pub const LENGTH_MAX: usize = 254;

    /// Parses `local@domain`. Quotes that are not needed are dropped: both forms are the same address (RFC 5321 4.1.2).
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.trim_matches(BLANKS).rsplit_once('@').ok_or(AddressError::NoAt)?;
        let quoted = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).filter(|_| local.len() > 1);
        let local = match quoted {
            None if split_mailboxes(local).nth(1).is_some() => return Err(AddressError::Several),
            None => local.to_owned(),
            Some(inside) => canonical(inside)?,
        };
        if local.is_empty() || local.len() > 64 {
            return Err(AddressError::LocalLength);
        }
        if local.chars().any(is_invisible) {
            return Err(AddressError::Invisible);
        }
        if quoted.is_none() && !is_dot_atom(&local) {
            return Err(AddressError::Local);
        }
        let domain = Domain::parse(domain)?;
        if local.len() + 1 + domain.as_str().len() > Self::LENGTH_MAX {
            return Err(AddressError::Length);
        }
        Ok(Self { local: local.into(), domain })
    }

    /// The part before the `@`, in quotes where it needs them.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The part behind the `@`.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether both lead to one mailbox, as far as is known: receivers that tell letters apart by their case are not in use, and an API that gets an address
    /// twice refuses the message.
    pub fn is_same_mailbox(&self, other: &Self) -> bool {
        let (one, two) = (self.local(), other.local());
        let is_same = one.eq_ignore_ascii_case(two)
            || (!one.is_ascii() && !two.is_ascii() && one.to_lowercase() == two.to_lowercase());
        is_same && self.domain() == other.domain()
    }

    /// True where the envelope needs SMTPUTF8 (RFC 6531).
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }
}

fn is_dot_atom(text: &str) -> bool {
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom_char))
}

/// What stands between the quotes of a quoted string, without quotes where it needs none, else with the fewest escapes.
fn canonical(inside: &str) -> Result<String, AddressError> {
    let mut chars = inside.chars();
    let mut plain = String::with_capacity(inside.len());
    while let Some(c) = chars.next() {
        match c {
            '"' => return Err(AddressError::Local),
            '\\' => plain.push(chars.next().ok_or(AddressError::Local)?),
            c => plain.push(c),
        }
    }
    let fits = |c: char| (' '..='~').contains(&c) || (!c.is_ascii() && !c.is_control() && !c.is_whitespace());
    if plain.is_empty() || !plain.chars().all(fits) {
        return Err(if plain.is_empty() { AddressError::LocalLength } else { AddressError::Local });
    }
    let is_plain = is_dot_atom(&plain);
    Ok(if is_plain { plain } else { format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\"")) })
}

/// Characters that nobody means to have in an address: default-ignorable ones (bidi controls among them), those of private use, noncharacters, and the
/// one that stands for what could not be decoded.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{ffff}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}' | '\u{e000}'..='\u{f8ff}' | '\u{fdd0}'..='\u{fdef}' | '\u{f0000}'..='\u{10ffff}')
        || (c as u32) & 0xfffe == 0xfffe
}

/// The pieces of a text between commas and semicolons outside of quotes and angle brackets.
fn split_mailboxes(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut is_quoted, mut is_escaped, mut depth) = (false, false, 0_usize);
        for (at, c) in text.char_indices() {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' if is_quoted => is_escaped = true,
                '"' => is_quoted = !is_quoted,
                _ if is_quoted => {}
                '<' => depth += 1,
                '>' => depth = depth.saturating_sub(1),
                ',' | ';' if depth == 0 => {
                    rest = Some(&text[at + 1..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
        }
        rest = None;
        Some(text)
    })
}

fn is_atom_char(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(c)
        || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

/// Shows the domain only: a `Debug` output ends up in logs.
impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[address at {}]", self.domain)
    }
}

/// An address with an optional display name.
#[derive(Clone, PartialEq, Eq)]
pub struct Mailbox {
    address: EmailAddress,
    name: Option<Box<str>>,
}

impl Mailbox {
    /// Joins an address and a display name. An empty name counts as none.
    pub fn new(address: EmailAddress, name: Option<&str>) -> Result<Self, AddressError> {
        let name = name.map(|name| name.trim().replace('\t', " ")).filter(|name| !name.is_empty());
        if name.as_ref().is_some_and(|name| name.chars().any(char::is_control)) {
            return Err(AddressError::Name);
        }
        if name.as_ref().is_some_and(|name| name.len() > NAME_OCTETS_MAX) {
            return Err(AddressError::NameLength);
        }
        Ok(Self { address, name: name.map(Into::into) })
    }

    /// Parses `address`, `<address>` or `Name <address>`; the name may stand in double quotes. Several addresses are refused.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let mut all = Self::parse_list(text)?;
        match all.pop() {
            Some(one) if all.is_empty() => Ok(one),
            Some(_) => Err(AddressError::Several),
            None => Err(AddressError::NoAt),
        }
    }

    /// Parses mailboxes between commas or semicolons. A piece without an `@` is the beginning of the next one's name: `Byron, Ada <ada@example.org>`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, AddressError> {
        Self::parse_each(text).collect()
    }

    /// The same, with an error for each that is none.
    pub fn parse_each(text: &str) -> impl Iterator<Item = Result<Self, AddressError>> {
        let (mut pieces, mut is_first) = (split_mailboxes(text), true);
        std::iter::from_fn(move || {
            let mut start = None;
            for piece in pieces.by_ref() {
                let from = piece.as_ptr() as usize - text.as_ptr() as usize;
                if piece.trim().is_empty() && start.is_none() {
                    continue;
                }
                let begin = *start.get_or_insert(from);
                if piece.contains('@') {
                    is_first = false;
                    return Some(Self::parse_one(&text[begin..from + piece.len()]));
                }
            }
            // What is left has no address, or there is nothing at all.
            let is_missing = start.is_some() || is_first;
            is_first = false;
            is_missing.then_some(Err(AddressError::NoAt))
        })
    }

    fn parse_one(text: &str) -> Result<Self, AddressError> {
        let text = text.trim_matches(BLANKS);
        let Some(before) = text.strip_suffix('>') else {
            return if text.ends_with('"') || !text.contains('<') || is_quoted_address(text) {
                Self::new(EmailAddress::parse(text)?, None)
            } else {
                Err(AddressError::Form)
            };
        };
        let (name, address) = before.rsplit_once('<').ok_or(AddressError::Form)?;
        let (name, address) = (name.trim_matches(BLANKS), EmailAddress::parse(address)?);
        let unquoted = match name.strip_prefix('"') {
            // A second address must not become the name that the first one is shown with.
            None if name.contains(['<', '>', '"']) => return Err(AddressError::Form),
            None if name.contains('@') && EmailAddress::parse(name).as_ref() != Ok(&address) => {
                return Err(AddressError::Several);
            }
            None => name.to_owned(),
            Some(rest) => unescape(rest.strip_suffix('"').ok_or(AddressError::Form)?)?,
        };
        Self::new(address, Some(&unquoted))
    }

    /// The address.
    pub fn address(&self) -> &EmailAddress {
        &self.address
    }

    /// The display name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// True for `"a<b"@example.org`.
fn is_quoted_address(text: &str) -> bool {
    text.starts_with('"') && text.rsplit_once('@').is_some_and(|(local, _)| local.ends_with('"'))
}

/// What stands between the quotes. A quote without a backslash ends it: what follows would be a second mailbox.
fn unescape(quoted: &str) -> Result<String, AddressError> {
    let mut out = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Err(AddressError::Form),
            '\\' => out.push(chars.next().ok_or(AddressError::Form)?),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Shows the domain only.
impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
