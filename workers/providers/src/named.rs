//! Which recipients an answer of a Web API names. Pure.

use postrider_schemas::job::RecipientField;

use crate::message::CallRecipient;

/// The envelope indices of the recipients that a text names: by their address; else by a path such as `to.0` or `Cc[1]`; else by a field in quotes that
/// has one recipient.
pub fn named(text: &str, recipients: &[CallRecipient]) -> Vec<usize> {
    let text = text.to_lowercase();
    let by = |is_named: &dyn Fn(&CallRecipient) -> bool| -> Vec<usize> {
        recipients.iter().filter(|one| is_named(one)).map(|one| one.index).collect()
    };
    let found = by(&|one| has_address(&text, &one.address));
    if !found.is_empty() {
        return found;
    }
    let paths = paths(&text);
    let found = by(&|one| paths.contains(&(one.field, one.position)));
    if !found.is_empty() {
        return found;
    }
    let is_alone = |one: &CallRecipient| recipients.iter().filter(|other| other.field == one.field).count() == 1;
    by(&|one| is_alone(one) && is_quoted(&text, word(one.field)))
}

fn word(field: RecipientField) -> &'static str {
    match field {
        RecipientField::To => "to",
        RecipientField::Cc => "cc",
        RecipientField::Bcc => "bcc",
    }
}

/// Whether the address stands there, and not within a longer one.
fn has_address(text: &str, address: &str) -> bool {
    text.match_indices(address).any(|(start, _)| {
        let is_of_address = |c: char| c.is_alphanumeric() || matches!(c, '+' | '_' | '-' | '@');
        let (before, after) = (&text[..start], &text[start + address.len()..]);
        let mut next = after.chars();
        // A full stop ends a sentence, unless a domain goes on behind it.
        let goes_on = match next.next() {
            Some('.') => next.next().is_some_and(char::is_alphanumeric),
            Some(c) => is_of_address(c),
            None => false,
        };
        !before.ends_with(|c: char| is_of_address(c) || c == '.') && !goes_on
    })
}

/// `to.0`, `cc[1]`, with anything but a letter or digit before.
fn paths(text: &str) -> Vec<(RecipientField, usize)> {
    let mut found = Vec::new();
    for field in [RecipientField::To, RecipientField::Cc, RecipientField::Bcc] {
        for (start, word) in text.match_indices(word(field)) {
            let rest = text[start + word.len()..].strip_prefix(['.', '[']);
            let is_whole = !text[..start].ends_with(char::is_alphanumeric);
            let Some(rest) = rest.filter(|_| is_whole) else { continue };
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            found.extend(rest[..digits].parse().ok().map(|position| (field, position)));
        }
    }
    found
}

fn is_quoted(text: &str, field: &str) -> bool {
    ["'", "`", "\""].iter().any(|quote| text.contains(&format!("{quote}{field}{quote}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[usize]) {
        let one = |index, field, position, address: &str| CallRecipient {
            index,
            field,
            position,
            address: address.to_owned(),
        };
        let list = [
            one(0, RecipientField::To, 0, "ada@dest.example"),
            one(2, RecipientField::To, 1, "ada@dest.example.org"),
            one(5, RecipientField::Cc, 0, "bob@dest.example"),
        ];
        assert_eq!(named(text, &list), expected, "{text}");
    }

    #[test]
    fn a_recipient_is_named_by_its_address_as_a_whole() {
        check("Found inactive addresses: Ada@dest.example. They bounced", &[0]);
        check("Illegal address '<ada@dest.example.org>'", &[2]);
        check("no: ada@dest.example, bob@dest.example", &[0, 5]);
        check("no: eve+ada@dest.example, xbob@dest.example", &[]);
    }

    #[test]
    fn a_recipient_is_named_by_its_place_in_the_call() {
        check("personalizations.0.cc.0.email: does not contain a valid address", &[5]);
        check("mj-0013: is an invalid email address, in To[1].Email", &[2]);
        check("to.7 and auto.0 and to.x", &[]);
    }

    #[test]
    fn a_field_with_one_recipient_names_it() {
        check("Invalid `cc` field", &[5]);
        check("Invalid `to` field", &[]);
    }
}
