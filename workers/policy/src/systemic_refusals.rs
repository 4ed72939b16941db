//! Whether an answer that no known word explains is about the recipients or about us: what several recipients in a row are told,
//! with nobody accepted in between, is about us.

/// So many different recipients with the same answer make it about us.
pub const RECIPIENTS: usize = 3;

/// One recipient who got an answer. Both are short hashes: no address is kept.
pub fn mark(answer: &str, recipient: &str) -> String {
    format!("{answer} {recipient}")
}

/// Whether so many marks since somebody was accepted are for this answer.
pub fn is_about_us(marks: &[String], answer: &str) -> bool {
    let of_answer = |mark: &&String| mark.split_once(' ').is_some_and(|(one, _)| one == answer);
    marks.iter().filter(of_answer).count() >= RECIPIENTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_answer_for_several_recipients_is_about_us() {
        let marks: Vec<String> = [("a", "1"), ("a", "2"), ("b", "3"), ("b", "1")].map(|(a, r)| mark(a, r)).to_vec();
        assert!(!is_about_us(&marks, "a"));
        assert!(is_about_us(&[marks, vec![mark("a", "9")]].concat(), "a"));
    }
}
