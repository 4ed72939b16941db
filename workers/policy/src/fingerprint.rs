//! What stays of an answer when everything is left out that differs from recipient to recipient.

/// The text of an answer in lower case, with a `#` for each word that is an address, has a dot within, or has a digit that is not
/// a reply code's or an enhanced code's own: hosts, numbers, ids.
pub fn fingerprint(answer: &str) -> String {
    let mut out = String::with_capacity(answer.len());
    for (n, word) in answer.split_whitespace().enumerate() {
        if n > 0 {
            out.push(' ');
        }
        let word = word.trim_matches(|c: char| c.is_ascii_punctuation() && !matches!(c, '[' | ']'));
        let is_code = word.len() == 3 && word.bytes().all(|b| b.is_ascii_digit());
        let is_enhanced = word.len() <= 9
            && word.split('.').count() == 3
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        let differs = word.contains(['@', '.', '[', '/', '=']) || word.bytes().any(|b| b.is_ascii_digit());
        if n < 3 && (is_code || is_enhanced) {
            out.push_str(word);
        } else if differs {
            out.push('#');
        } else {
            out.extend(word.chars().flat_map(char::to_lowercase));
        }
    }
    out
}

/// Whether two answers are the same but for what differs from recipient to recipient. One of them may have been cut.
pub fn is_same(one: &str, other: &str) -> bool {
    const LOOKED_AT: usize = 80;
    let (one, other) = (fingerprint(one), fingerprint(other));
    one.chars().take(LOOKED_AT).eq(other.chars().take(LOOKED_AT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_recipient_to_recipient_is_left_out_and_nothing_else() {
        let one = "rcpt_to: 550 5.7.1 [address] Refused by mx1.dest.example (id 4Xk9, 192.0.2.1)";
        let other = "rcpt_to: 550 5.7.1 [address] refused by mx22.dest.example (id 77, [192.0.2.9])";
        assert_eq!(fingerprint(one), fingerprint(other));
        assert_eq!(fingerprint(one), "rcpt_to 550 5.7.1 # refused by # id # #");
        assert_ne!(
            fingerprint(one),
            fingerprint("rcpt_to: 550 5.1.1 [address] Refused by mx1.dest.example (id 4Xk9, 192.0.2.1)")
        );
        assert_ne!(fingerprint("rcpt_to: 550 no"), fingerprint("rcpt_to: 550 never"));
    }
}
