//! When a certificate ends, read from its DER form: the few steps from its beginning to the end of its validity. It checks nothing; rustls did.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{Timestamp, civil, tz::TimeZone};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When the certificate ends that a server showed last, in Unix seconds; 0 where it showed none.
#[derive(Debug, Default)]
pub struct Shown(AtomicI64);

impl Shown {
    /// It showed this one. What cannot be read changes nothing.
    pub fn note(&self, der: &[u8]) {
        if let Some(end) = end(der) {
            self.0.store(end.as_second(), Ordering::Relaxed);
        }
    }

    /// When it ends.
    pub fn end(&self) -> Option<Timestamp> {
        let end = self.0.load(Ordering::Relaxed);
        Timestamp::from_second(end).ok().filter(|_| end > 0)
    }
}

/// The end of its validity; nothing where it cannot be read.
fn end(der: &[u8]) -> Option<Timestamp> {
    let certificate = value(der, SEQUENCE)?.0;
    let mut rest = value(certificate, SEQUENCE)?.0;
    if rest.first() == Some(&VERSION) {
        rest = any(rest)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        rest = any(rest)?.2;
    }
    let validity = value(rest, SEQUENCE)?.0;
    let (tag, end, _) = any(any(validity)?.2)?;
    time(tag, std::str::from_utf8(end).ok()?)
}

/// `YYMMDDhhmmssZ` until 2049, `YYYYMMDDhhmmssZ` from then on (RFC 5280 4.1.2.5).
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z').filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let year: i16 = digits.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, digits.get(2..)?)
        }
        GENERALIZED_TIME => (digits.get(..4)?.parse().ok()?, digits.get(4..)?),
        _ => return None,
    };
    let pair = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let at = civil::DateTime::new(year, pair(0)?, pair(2)?, pair(4)?, pair(6)?, pair(8)?, 0).ok()?;
    at.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// The content of an element with this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = any(der)?;
    (found == tag).then_some((content, rest))
}

/// Tag, content, and what follows.
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[track_caller]
    fn check(year: i32, expected: &str) {
        let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 9);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(end(certificate.der()).map(|time| time.to_string()).as_deref(), Some(expected));
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        check(2031, "2031-03-09T00:00:00Z");
        check(2072, "2072-03-09T00:00:00Z");
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        for bytes in [&[][..], &[0x30, 0x03, 0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], b"hello"] {
            assert_eq!(end(bytes), None);
        }
    }
}
