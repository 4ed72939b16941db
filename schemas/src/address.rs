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
    /// The part before the `@` is not a dot-atom (RFC 5321 4.1.2, RFC 6531 for UTF-8); quoted forms are not supported.
    #[error("the part before the @ holds a character or a dot where none may be")]
    Local,
    /// The domain is not a valid host name, after IDNA processing (UTS 46, STD3 rules).
    #[error("the domain is not a valid internationalised domain name")]
    Domain,
    /// Longer than 254 octets (RFC 5321 4.5.3.1.3).
    #[error("an address has at most 254 octets")]
    Length,
    /// The display name holds a control character such as CR, LF or NUL.
    #[error("the display name holds a control character (a line break, for example)")]
    Name,
    /// `Name <address>` without its closing bracket, or with text behind it.
    #[error("expected `address` or `Name <address>`")]
    Form,
}

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

/// A mail address: a dot-atom before the `@` (UTF-8 allowed), an ASCII domain behind it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EmailAddress {
    local: Box<str>,
    domain: Domain,
}

impl EmailAddress {
    /// Longest address, in octets.
    pub const LENGTH_MAX: usize = 254;

    /// Parses `local@domain`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::NoAt)?;
        if local.is_empty() || local.len() > 64 {
            return Err(AddressError::LocalLength);
        }
        if !local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom_char)) {
            return Err(AddressError::Local);
        }
        let domain = Domain::parse(domain)?;
        if local.len() + 1 + domain.as_str().len() > Self::LENGTH_MAX {
            return Err(AddressError::Length);
        }
        Ok(Self { local: local.into(), domain })
    }

    /// The part before the `@`.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The part behind the `@`.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// True where the envelope needs SMTPUTF8 (RFC 6531).
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }
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
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        if name.is_some_and(|name| name.chars().any(char::is_control)) {
            return Err(AddressError::Name);
        }
        Ok(Self { address, name: name.map(Into::into) })
    }

    /// Parses `address`, `<address>` or `Name <address>`; the name may stand in double quotes.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim_matches(' ');
        let Some((name, rest)) = text.rsplit_once('<') else {
            return Self::new(EmailAddress::parse(text)?, None);
        };
        let address = rest.strip_suffix('>').ok_or(AddressError::Form)?;
        let name = name.trim_matches(' ');
        let unquoted = match name.strip_prefix('"') {
            None => name.to_owned(),
            Some(rest) => unescape(rest.strip_suffix('"').ok_or(AddressError::Form)?),
        };
        Self::new(EmailAddress::parse(address)?, Some(&unquoted))
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

fn unescape(quoted: &str) -> String {
    let mut out = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// Shows the domain only.
impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, Option<&str>), AddressError>) {
        let parsed = Mailbox::parse(text);
        let seen = parsed.as_ref().map(|m| (m.address().to_string(), m.name())).map_err(|error| *error);
        assert_eq!(seen, expected.map(|(address, name)| (address.to_owned(), name)));
    }

    #[test]
    fn plain_and_named_forms() {
        check("a@b.test", Ok(("a@b.test", None)));
        check("<a@b.test>", Ok(("a@b.test", None)));
        check("Zoë Smith <zoe@b.test>", Ok(("zoe@b.test", Some("Zoë Smith"))));
        check(r#""Smith, \"Z\"" <z@b.test>"#, Ok(("z@b.test", Some("Smith, \"Z\""))));
    }

    #[test]
    fn domains_become_ascii_and_lower_case() {
        check("a@Bücher.Example", Ok(("a@xn--bcher-kva.example", None)));
        check("ü@例え.jp", Ok(("ü@xn--r8jz45g.jp", None)));
    }

    #[test]
    fn bad_addresses_are_refused() {
        check("nobody", Err(AddressError::NoAt));
        check("@b.test", Err(AddressError::LocalLength));
        check(&format!("{}@b.test", "x".repeat(65)), Err(AddressError::LocalLength));
        check("a..b@c.test", Err(AddressError::Local));
        check("a b@c.test", Err(AddressError::Local));
        check("a@", Err(AddressError::Domain));
        check("a@b..test", Err(AddressError::Domain));
        check("a@b_c.test", Err(AddressError::Domain));
        check("a@-b.test", Err(AddressError::Domain));
        check("a@xn--zzzzzzz99999.test", Err(AddressError::Domain));
        check(&format!("a@{}.test", "x".repeat(64)), Err(AddressError::Domain));
        check(&format!("a@{}.test", "ü".repeat(5_000_000)), Err(AddressError::Domain));
        check("Name <a@b.test", Err(AddressError::Form));
    }

    #[test]
    fn line_breaks_are_refused_wherever_they_hide() {
        check("a@b.test\r\nBcc: c@d.test", Err(AddressError::Local));
        check("a\r\n@b.test", Err(AddressError::Local));
        check("a@b.test\r\n", Err(AddressError::Domain));
        check("Na\r\nme <a@b.test>", Err(AddressError::Name));
        check("Na\0me <a@b.test>", Err(AddressError::Name));
    }

    #[test]
    fn debug_output_shows_no_local_part() {
        let mailbox = Mailbox::parse("Zoë <zoe@b.test>").unwrap();
        assert_eq!(format!("{mailbox:?}"), "[address at b.test]");
    }
}
