//! What a relay offers in its answer to EHLO, as far as this client has a use for it.

/// The extensions that were offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one keyword of the answer")]
pub struct EhloCapabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtp_utf8: bool,
    /// RFC 1870.
    pub size: bool,
    /// The largest message in octets, where the relay names one.
    pub size_max: Option<u64>,
    /// AUTH PLAIN.
    pub plain: bool,
    /// AUTH LOGIN.
    pub login: bool,
    /// AUTH XOAUTH2.
    pub xoauth2: bool,
}

impl EhloCapabilities {
    /// From the texts of the answer's lines; the first is the relay's name.
    pub fn parse<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut offers = Self::default();
        for text in texts.skip(1).filter_map(|text| std::str::from_utf8(text).ok()) {
            // "AUTH=PLAIN" is how a few old servers repeat themselves.
            let mut words = text.split([' ', '=']).filter(|word| !word.is_empty());
            match words.next().map(str::to_ascii_uppercase).as_deref() {
                Some("PIPELINING") => offers.pipelining = true,
                Some("STARTTLS") => offers.starttls = true,
                Some("8BITMIME") => offers.eight_bit_mime = true,
                Some("SMTPUTF8") => offers.smtp_utf8 = true,
                Some("SIZE") => {
                    offers.size = true;
                    // 0 is "no fixed maximum".
                    offers.size_max = words.next().and_then(|size| size.parse().ok()).filter(|size| *size > 0);
                }
                Some("AUTH") => words.for_each(|word| offers.auth(word)),
                _ => {}
            }
        }
        offers
    }

    fn auth(&mut self, mechanism: &str) {
        match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => self.plain = true,
            "LOGIN" => self.login = true,
            "XOAUTH2" => self.xoauth2 = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[&str], expected: EhloCapabilities) {
        assert_eq!(EhloCapabilities::parse(lines.iter().map(|line| line.as_bytes())), expected);
    }

    #[test]
    fn known_keywords_are_read_in_any_case_and_order() {
        check(
            &[
                "relay.example",
                "size 10240000",
                "Pipelining",
                "8BITMIME",
                "SMTPUTF8",
                "STARTTLS",
                "AUTH PLAIN xoauth2",
                "DSN",
            ],
            EhloCapabilities {
                pipelining: true,
                starttls: true,
                eight_bit_mime: true,
                smtp_utf8: true,
                size: true,
                size_max: Some(10_240_000),
                plain: true,
                login: false,
                xoauth2: true,
            },
        );
    }

    #[test]
    fn the_relays_name_is_no_keyword() {
        check(&["PIPELINING"], EhloCapabilities::default());
    }

    #[test]
    fn a_size_without_a_maximum_has_none() {
        check(&["x", "SIZE"], EhloCapabilities { size: true, ..EhloCapabilities::default() });
        check(&["x", "SIZE 0"], EhloCapabilities { size: true, ..EhloCapabilities::default() });
        check(&["x", "SIZE many"], EhloCapabilities { size: true, ..EhloCapabilities::default() });
    }

    #[test]
    fn the_old_form_of_auth_counts() {
        check(&["x", "AUTH=LOGIN PLAIN"], EhloCapabilities { login: true, plain: true, ..EhloCapabilities::default() });
    }
}
