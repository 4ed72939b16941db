//! Text of others on a terminal: escape sequences, line breaks and characters that turn the direction of writing come out as what they are, in ASCII.
//! Pure. Used where text leaves the process for a person: `commands::output` and the log lines.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a character does something else than to be seen: controls (C0, DEL, C1), line and paragraph separators, marks of direction, characters
/// without a width.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text as one line that can be shown: `\n`, `\u{1b}` and the like stand for what acts.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, |c, out| match c {
        '\n' | '\r' | '\t' => out.extend(c.escape_default()),
        c => out.extend(c.escape_unicode()),
    })
}

/// A JSON document as one line that can be shown and means the same: within strings `\u001b` and the like stand for what acts, between them a blank.
pub fn json(text: &str) -> Cow<'_, str> {
    replaced(text, |c, out| match c {
        // Not within a string, where JSON knows no such character.
        '\n' | '\r' | '\t' => out.push(' '),
        c => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    })
}

fn replaced(text: &str, put: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { put(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_stays_in_a_line() {
        for (text, expected) in [
            ("250 Ok: queued as 4Xk, Grüße 送信", "250 Ok: queued as 4Xk, Grüße 送信"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\r\nok\tb", "a\\r\\nok\\tb"),
            ("csi \u{9b}31m del \x7f", "csi \\u{9b}31m del \\u{7f}"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
            ("a\u{2028}b\u{feff}", "a\\u{2028}b\\u{feff}"),
        ] {
            assert_eq!(line(text), expected);
        }
    }

    #[test]
    fn a_json_document_says_the_same_and_does_nothing() {
        let value = serde_json::json!({ "answer": "a\u{1b}[2J\n\u{9b}1m\u{202e}x\u{7f}\u{e0041} ü" });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = json(&text);
            assert!(!shown.contains(acts), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
