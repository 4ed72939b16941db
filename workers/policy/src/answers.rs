//! The table of answers: which reply is about whom. Data (`answers.toml`, and `[[answer]]` of the configuration); here it is only read.
//!
//! One function reads the replies of every stage. The first entry that matches decides, and the shipped table ends with entries that
//! match everything.

use crate::outcome::{Class, EnhancedCode, Mark, Stage};

/// The table, in the order in which it is read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers(pub Vec<Entry>);

/// One line of the table. Conditions that are absent hold for every reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Shown where it decided.
    pub name: String,
    /// Where in the conversation; everywhere when empty.
    pub stages: Vec<Stage>,
    /// Temporary replies only, or permanent ones only.
    pub temporary: Option<bool>,
    /// Reply codes such as `550` or `45x`.
    pub codes: Vec<String>,
    /// Enhanced codes such as `5.7.x`; `none` for a reply without one.
    pub enhanced: Vec<String>,
    /// Any of these parts of the text.
    pub text: Vec<Pattern>,
    /// Any of these besides.
    pub and: Vec<Pattern>,
    /// None of these.
    pub unless: Vec<Pattern>,
    /// What kind of refusal it is.
    pub class: Class,
    /// What is to be made of it beside its class.
    pub mark: Mark,
    /// It comes from the configuration.
    pub is_own: bool,
}

/// A part of a text: pieces in this order, with anything in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

/// What a reply means, and which entry says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading<'a> {
    /// What kind of refusal it is.
    pub class: Class,
    /// What is to be made of it beside its class.
    pub mark: Mark,
    /// The entry's name.
    pub name: &'a str,
    /// The entry comes from the configuration.
    pub is_own: bool,
}

impl Answers {
    /// Reads a negative reply (4xx or 5xx), or the status and words of a Web API.
    pub fn read(&self, stage: Stage, code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Reading<'_> {
        let text = plain(text);
        let is_temporary = if stage == Stage::Call { is_temporary_status(code) } else { is_temporary(code, enhanced) };
        let found = self.0.iter().find(|one| one.holds(stage, is_temporary, code, enhanced, &text));
        found.map_or(Reading { class: Class::Transient, mark: Mark::Plain, name: "", is_own: false }, |one| Reading {
            class: one.class,
            mark: one.mark,
            name: &one.name,
            is_own: one.is_own,
        })
    }
}

/// Whether a reply leaves hope. Where its two codes contradict each other the hopeful one counts: nobody is given up by mistake.
pub fn is_temporary(code: u16, enhanced: Option<EnhancedCode>) -> bool {
    code < 500 || enhanced.is_some_and(|EnhancedCode(class, ..)| class == 4)
}

/// The same for a status of HTTP, where 4xx is for good but for three.
fn is_temporary_status(status: u16) -> bool {
    !(400..500).contains(&status) || matches!(status, 408 | 425 | 429)
}

impl Entry {
    fn holds(&self, stage: Stage, temporary: bool, code: u16, enhanced: Option<EnhancedCode>, text: &str) -> bool {
        let any = |list: &[Pattern]| list.iter().any(|one| one.is_in(text));
        (self.stages.is_empty() || self.stages.contains(&stage))
            && self.temporary.is_none_or(|wanted| wanted == temporary)
            && (self.codes.is_empty() || self.codes.iter().any(|one| is_code(one, code)))
            && (self.enhanced.is_empty() || self.enhanced.iter().any(|one| is_enhanced(one, enhanced)))
            && (self.text.is_empty() || any(&self.text))
            && (self.and.is_empty() || any(&self.and))
            && !any(&self.unless)
    }
}

impl Pattern {
    /// Nothing where there is nothing to look for.
    pub fn new(text: &str) -> Option<Self> {
        let pieces: Vec<String> = text.split('*').map(letters).filter(|piece| !piece.trim().is_empty()).collect();
        (!pieces.is_empty()).then_some(Self(pieces))
    }

    fn is_in(&self, text: &str) -> bool {
        let mut rest = text;
        self.0.iter().all(|piece| match rest.find(piece.as_str()) {
            Some(place) => {
                // The blank at the end of a piece may begin the next one.
                let end = place + piece.len() - usize::from(piece.ends_with(' '));
                rest = &rest[end..];
                true
            }
            None => false,
        })
    }
}

/// Letters and digits in lower case, one blank for whatever is between them; apostrophes vanish. Blanks at both ends.
fn plain(text: &str) -> String {
    format!(" {} ", letters(text).trim())
}

fn letters(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for c in text.chars().filter(|c| !matches!(c, '\'' | '’' | '`')).flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            out.push(c);
        } else if !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out
}

fn is_code(pattern: &str, code: u16) -> bool {
    let code = code.to_string();
    pattern.len() == code.len() && pattern.chars().zip(code.chars()).all(|(want, is)| want == 'x' || want == is)
}

/// `x` alone stands for any number, an `x` within a number for any digit.
fn is_enhanced(pattern: &str, code: Option<EnhancedCode>) -> bool {
    let Some(code) = code else { return pattern == "none" };
    let code = code.to_string();
    let (mut want, mut is) = (pattern.split('.'), code.split('.'));
    let fits = |want: &str, is: &str| {
        want == "x"
            || (want.len() == is.len() && want.chars().zip(is.chars()).all(|(want, is)| want == 'x' || want == is))
    };
    loop {
        match (want.next(), is.next()) {
            (None, None) => return true,
            (Some(want), Some(is)) if fits(want, is) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_its_pieces_in_order_whatever_stands_between_words() {
        let is_in = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().is_in(&plain(text));
        assert!(is_in("block list", "BLOCK-LIST"));
        assert!(is_in("isn't in", "that isn’t in"));
        assert!(is_in(" spf ", "SPF"));
        assert!(is_in("rate * exceeded", "Rate limit: exceeded"));
        assert!(is_in("a * b ", "a b"));
        assert!(!is_in(" spf ", "spfx"));
        assert!(!is_in("exceeded * rate", "rate exceeded"));
        assert_eq!(Pattern::new(" * "), None);
    }

    #[test]
    fn contradicting_codes_are_temporary() {
        assert!(is_temporary(550, Some(EnhancedCode(4, 7, 1))));
        assert!(is_temporary(450, Some(EnhancedCode(5, 7, 1))));
        assert!(!is_temporary(550, None));
    }
}
