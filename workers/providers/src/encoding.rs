//! Small things that several providers write alike.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_schemas::address::Mailbox;
use serde_json::{Map, Value};

/// Sets a field.
pub fn put(object: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    object.insert(field.to_owned(), value.into());
}

/// Standard base64 with padding, on one line.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `Name <address>`, or the address alone: the form of RFC 5322, unfolded and with UTF-8 in the name, that the APIs take which have
/// no field of its own for a name. The name is quoted where it is not made of plain words.
pub fn name_addr(mailbox: &Mailbox) -> String {
    let Some(name) = mailbox.name() else { return mailbox.address().to_string() };
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || c == ' ');
    if is_plain {
        return format!("{name} <{}>", mailbox.address());
    }
    let mut quoted = String::with_capacity(name.len() + 2);
    for c in name.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    format!("\"{quoted}\" <{}>", mailbox.address())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mailbox: &str, expected: &str) {
        assert_eq!(name_addr(&Mailbox::parse(mailbox).unwrap()), expected);
    }

    #[test]
    fn a_name_is_quoted_where_it_must_be() {
        check("a@shop.example", "a@shop.example");
        check("Zoë Ann <a@shop.example>", "Zoë Ann <a@shop.example>");
        check("\"Shop: News, Inc.\" <a@shop.example>", "\"Shop: News, Inc.\" <a@shop.example>");
    }
}
