//! What a text or a domain is compared with. Compiled once, when the configuration is read; comparing allocates nothing.

use std::{collections::HashSet, fmt};

use postrider_schemas::address::Domain;
use regex::Regex;

/// Texts: any of these.
#[derive(Debug, Clone, Default)]
pub struct TextPatterns {
    exact: Vec<Box<str>>,
    other: Vec<Pattern>,
    /// As it was written.
    shown: String,
}

#[derive(Debug, Clone)]
enum Pattern {
    Any,
    Prefix(Box<str>),
    Suffix(Box<str>),
    Regex(Regex),
}

impl TextPatterns {
    /// A text stands for itself; one `*` at its end or its beginning stands for anything.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut texts = Self::default();
        for text in list {
            texts.show(text);
            match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(""), _) => texts.other.push(Pattern::Any),
                (_, Some(prefix)) if !prefix.contains('*') => texts.other.push(Pattern::Prefix(prefix.into())),
                (Some(suffix), None) if !suffix.contains('*') => texts.other.push(Pattern::Suffix(suffix.into())),
                (None, None) if !text.contains('*') => texts.exact.push(text.into()),
                _ => return Err(format!("`{text}`: one * at the beginning or the end, or {{ regex = \"..\" }}")),
            }
        }
        Ok(texts)
    }

    /// A regular expression that must be found in the text.
    pub fn regex(source: &str) -> Result<Self, String> {
        let regex = Regex::new(source).map_err(|error| format!("`{source}` is no regular expression: {error}"))?;
        Ok(Self { exact: Vec::new(), other: vec![Pattern::Regex(regex)], shown: format!("/{source}/") })
    }

    /// These and those.
    #[must_use]
    pub fn or(mut self, mut more: Self) -> Self {
        self.show(&more.shown);
        self.exact.append(&mut more.exact);
        self.other.append(&mut more.other);
        self
    }

    fn show(&mut self, text: &str) {
        if !self.shown.is_empty() {
            self.shown.push_str(", ");
        }
        self.shown.push_str(text);
    }

    /// True where nothing can match.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.other.is_empty()
    }

    /// Compares.
    pub fn matches(&self, text: &str) -> bool {
        self.exact.iter().any(|one| **one == *text)
            || self.other.iter().any(|pattern| match pattern {
                Pattern::Any => true,
                Pattern::Prefix(prefix) => text.starts_with(&**prefix),
                Pattern::Suffix(suffix) => text.ends_with(&**suffix),
                Pattern::Regex(regex) => regex.is_match(text),
            })
    }

    /// True where everything that `other` matches is matched here, as far as that can be told.
    pub fn covers(&self, other: &Self) -> bool {
        let any = self.other.iter().any(|pattern| matches!(pattern, Pattern::Any));
        any || self.shown == other.shown
            || (other.other.is_empty() && other.exact.iter().all(|text| self.matches(text)))
    }
}

impl fmt::Display for TextPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// A domain, or with a dot in front the end of one, in ASCII and lower case as addresses have them. International names are accepted.
pub fn domain_or_end(text: &str) -> Result<String, String> {
    let end = text.strip_prefix('.');
    let name = end.unwrap_or(text);
    // A top-level domain by itself is no domain of a mailbox, but a fine suffix.
    let is_top_level = end.is_some() && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let name = match Domain::parse(name) {
        Ok(domain) => domain.as_str().to_owned(),
        Err(_) if is_top_level => name.to_ascii_lowercase(),
        Err(error) => return Err(format!("`{text}`: {error}")),
    };
    Ok(if end.is_some() { format!(".{name}") } else { name })
}

/// Domains: any of these.
#[derive(Debug, Clone, Default)]
pub struct DomainPatterns {
    exact: HashSet<Box<str>>,
    /// With the dot in front.
    suffixes: Vec<Box<str>>,
    shown: String,
}

impl DomainPatterns {
    /// `example.com` is that domain alone, `.example.com` every domain below it. International names are accepted.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut domains = Self::default();
        for text in list {
            let name = domain_or_end(text)?;
            if name.starts_with('.') {
                domains.suffixes.push(name.into());
            } else {
                domains.exact.insert(name.into());
            }
            domains.show(text);
        }
        Ok(domains)
    }

    /// These and those.
    #[must_use]
    pub fn or(mut self, more: Self) -> Self {
        self.show(&more.shown);
        self.exact.extend(more.exact);
        self.suffixes.extend(more.suffixes);
        self
    }

    fn show(&mut self, text: &str) {
        if !self.shown.is_empty() && !text.is_empty() {
            self.shown.push_str(", ");
        }
        self.shown.push_str(text);
    }

    /// True where nothing can match.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty()
    }

    /// Compares.
    pub fn matches(&self, domain: &Domain) -> bool {
        let name = domain.as_str();
        self.exact.contains(name) || self.suffixes.iter().any(|suffix| name.ends_with(&**suffix))
    }

    /// True where everything that `other` matches is matched here.
    pub fn covers(&self, other: &Self) -> bool {
        let below = |name: &str| self.suffixes.iter().any(|suffix| name.ends_with(&**suffix));
        other.exact.iter().all(|name| self.exact.contains(name) || below(name))
            && other.suffixes.iter().all(|suffix| below(suffix))
    }
}

impl fmt::Display for DomainPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(patterns: &[&str], text: &str, expected: bool) {
        assert_eq!(
            TextPatterns::parse(patterns.iter().copied()).unwrap().matches(text),
            expected,
            "{patterns:?} {text}"
        );
    }

    #[test]
    fn a_text_stands_for_itself_and_a_star_for_anything() {
        check_text(&["summer"], "summer", true);
        check_text(&["summer"], "summer-2", false);
        check_text(&["a", "summer*"], "summer-2", true);
        check_text(&["*-eu"], "de-eu", true);
        check_text(&["*-eu"], "eu-de", false);
        check_text(&["*"], "", true);
        check_text(&[], "", false);
        assert!(TextPatterns::parse(["a*b"]).is_err());
        assert!(TextPatterns::parse(["*a*"]).is_err());
        assert!(TextPatterns::regex("^s.m").unwrap().matches("summer"));
        assert!(TextPatterns::regex("(").unwrap_err().contains('('));
    }

    #[track_caller]
    fn check_domain(patterns: &[&str], domain: &str, expected: bool) {
        let domains = DomainPatterns::parse(patterns.iter().copied()).unwrap();
        assert_eq!(domains.matches(&Domain::parse(domain).unwrap()), expected, "{patterns:?} {domain}");
    }

    #[test]
    fn a_dot_in_front_means_everything_below() {
        check_domain(&["example.com"], "example.com", true);
        check_domain(&["example.com"], "mail.example.com", false);
        check_domain(&[".example.com"], "mail.example.com", true);
        check_domain(&[".example.com"], "example.com", false);
        check_domain(&[".example.com"], "badexample.com", false);
        check_domain(&["EXAMPLE.com", ".de"], "shop.de", true);
        check_domain(&["bücher.example"], "xn--bcher-kva.example", true);
        assert!(DomainPatterns::parse(["not a domain"]).is_err());
        assert!(DomainPatterns::parse(["."]).is_err());
    }

    #[test]
    fn wider_patterns_cover_narrower_ones() {
        let texts = |list: &[&str]| TextPatterns::parse(list.iter().copied()).unwrap();
        assert!(texts(&["a", "b"]).covers(&texts(&["b"])));
        assert!(texts(&["*"]).covers(&TextPatterns::regex("x").unwrap()));
        assert!(texts(&["a*"]).covers(&texts(&["ab", "ac"])));
        assert!(!texts(&["b"]).covers(&texts(&["a", "b"])));
        let domains = |list: &[&str]| DomainPatterns::parse(list.iter().copied()).unwrap();
        assert!(domains(&[".example"]).covers(&domains(&["a.example", ".b.example"])));
        assert!(!domains(&["a.example"]).covers(&domains(&[".a.example"])));
    }
}
