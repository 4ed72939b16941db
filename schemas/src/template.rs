//! How large and how involved the template of a job may be, found by one pass over its source, before anything parses it. The pass knows where the
//! template language begins and ends, and no more: what it lets through still runs in a process that can be stopped.

use serde_json::{Map, Value};

/// Largest source of a subject or a body, in octets.
pub const SOURCE_OCTETS_MAX: usize = 1024 * 1024;
/// Most tags (`{{ }}` and `{% %}`) in one source.
pub const TAGS_MAX: usize = 10_000;
/// Most operators in one tag: signs, filters, brackets that open, and words such as `and`, `not` and `is`.
pub const OPERATORS_MAX: usize = 250;
/// How deep brackets and blocks may nest, both together.
pub const DEPTH_MAX: usize = 40;
/// Most `elif` in one source.
pub const ELIF_MAX: usize = 250;
/// Largest variables of a job, in octets, see [`weight`].
pub const VARIABLES_OCTETS_MAX: usize = 1024 * 1024;

/// What the pass over a source found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// Tags.
    pub tags: usize,
    /// There is nothing but `{{ name }}`, `{{ a.b.c }}` and a few filters that make a text of a text: its cost is that of its length.
    pub is_plain: bool,
}

/// Why a template is refused before it is parsed. The texts quote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TemplateLimit {
    /// The source is too large.
    #[error("the template has more than {SOURCE_OCTETS_MAX} octets")]
    Octets,
    /// There are too many tags.
    #[error("the template has more than {TAGS_MAX} tags")]
    Tags,
    /// A tag holds too many operators.
    #[error("a tag of the template has more than {OPERATORS_MAX} operators, filters and brackets")]
    Operators,
    /// Blocks and brackets nest too deep.
    #[error("blocks and brackets of the template nest deeper than {DEPTH_MAX}")]
    Depth,
    /// There are too many `elif`.
    #[error("the template has more than {ELIF_MAX} `elif`")]
    Elif,
    /// The variables are too large.
    #[error("the variables have more than {VARIABLES_OCTETS_MAX} octets")]
    Variables,
}

/// Filters that a plain template may use: each makes a text of a text, in time that its length tells.
const PLAIN_FILTERS: [&str; 7] = ["upper", "lower", "title", "capitalize", "trim", "escape", "e"];
/// Most filters behind one name of a plain template.
const PLAIN_FILTERS_MAX: usize = 4;
/// Longest path of names in a plain template.
const PLAIN_NAMES_MAX: usize = 16;

/// Words that stand for an operator inside a tag.
const OPERATOR_WORDS: [&[u8]; 7] = [b"and", b"or", b"not", b"in", b"is", b"if", b"else"];
/// Tags that open a block. `set` may as well, and is left out: its blocks nest in others' depth.
const OPENING: [&[u8]; 8] = [b"if", b"for", b"macro", b"call", b"filter", b"with", b"autoescape", b"block"];

/// One pass over a source.
pub fn survey(source: &str) -> Result<Survey, TemplateLimit> {
    if source.len() > SOURCE_OCTETS_MAX {
        return Err(TemplateLimit::Octets);
    }
    let mut scan = Scan { source: source.as_bytes(), at: 0, blocks: 0, elif: 0, tags: 0, is_plain: true };
    while scan.next_tag()? {}
    Ok(Survey { tags: scan.tags, is_plain: scan.is_plain })
}

/// The size of variables: about that of their JSON. Stops where it is more than `max`.
pub fn weight(variables: &Map<String, Value>, max: usize) -> Option<usize> {
    let mut left = max;
    object(variables, &mut left)?;
    Some(max - left)
}

fn object(map: &Map<String, Value>, left: &mut usize) -> Option<()> {
    map.iter().try_for_each(|(key, value)| {
        *left = left.checked_sub(key.len() + 4)?;
        value_weight(value, left)
    })
}

fn value_weight(value: &Value, left: &mut usize) -> Option<()> {
    let own = match value {
        Value::String(text) => text.len() + 2,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => 2,
    };
    *left = left.checked_sub(own)?;
    match value {
        Value::Array(list) => list.iter().try_for_each(|one| value_weight(one, left)),
        Value::Object(map) => object(map, left),
        _ => Some(()),
    }
}

/// Where the pass stands.
struct Scan<'a> {
    source: &'a [u8],
    at: usize,
    blocks: usize,
    elif: usize,
    tags: usize,
    is_plain: bool,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a [u8] {
        self.source.get(self.at..).unwrap_or_default()
    }

    /// Reads on behind the next tag or comment; false at the end. What does not end, ends here: the engine says what is wrong with it.
    fn next_tag(&mut self) -> Result<bool, TemplateLimit> {
        let Some(start) = find(self.rest(), |pair| matches!(pair, b"{{" | b"{%" | b"{#")) else { return Ok(false) };
        let kind = self.rest()[start + 1];
        self.at += start + 2;
        if kind == b'#' {
            self.is_plain = false;
            self.at = find(self.rest(), |pair| pair == b"#}").map_or(self.source.len(), |end| self.at + end + 2);
            return Ok(true);
        }
        self.tags += 1;
        if self.tags > TAGS_MAX {
            return Err(TemplateLimit::Tags);
        }
        if kind == b'{' {
            if let Some(length) = self.is_plain.then(|| plain(self.rest())).flatten() {
                self.at += length;
            } else {
                self.is_plain = false;
                self.tag(b"}}")?;
            }
            return Ok(true);
        }
        self.is_plain = false;
        if word(self.rest()) == b"raw" {
            // Up to `endraw` nothing is a tag.
            self.tag(b"%}")?;
            while let Some(start) = find(self.rest(), |pair| pair == b"{%") {
                self.at += start + 2;
                if word(self.rest()) == b"endraw" {
                    break;
                }
            }
        } else {
            self.block()?;
        }
        self.tag(b"%}")?;
        Ok(true)
    }

    /// What the first word of a block tag does to the depth.
    fn block(&mut self) -> Result<(), TemplateLimit> {
        let word = word(self.rest());
        if word == b"elif" {
            self.elif += 1;
            if self.elif > ELIF_MAX {
                return Err(TemplateLimit::Elif);
            }
        } else if OPENING.contains(&word) {
            self.blocks += 1;
            if self.blocks > DEPTH_MAX {
                return Err(TemplateLimit::Depth);
            }
        } else if word.strip_prefix(b"end").is_some_and(|opened| OPENING.contains(&opened)) {
            self.blocks = self.blocks.saturating_sub(1);
        }
        Ok(())
    }

    /// Reads a tag up to its end, which counts outside of brackets and strings alone.
    fn tag(&mut self, end: &[u8; 2]) -> Result<(), TemplateLimit> {
        let (mut operators, mut open) = (0_usize, 0_isize);
        while let Some(&octet) = self.source.get(self.at) {
            if open == 0 && self.rest().starts_with(end) {
                self.at += 2;
                return Ok(());
            }
            let mut length = 1;
            match octet {
                b'"' | b'\'' => length = string(self.rest()),
                b'(' | b'[' | b'{' => {
                    open += 1;
                    operators += 1;
                    if usize::try_from(open).is_ok_and(|open| self.blocks + open > DEPTH_MAX) {
                        return Err(TemplateLimit::Depth);
                    }
                }
                b')' | b']' | b'}' => open -= 1,
                b'+' | b'-' | b'*' | b'/' | b'%' | b'~' | b'|' | b'<' | b'>' | b'=' | b'!' | b'.' => operators += 1,
                _ if is_of_a_word(octet) => {
                    let word = word(self.rest());
                    length = word.len().max(1);
                    operators += usize::from(OPERATOR_WORDS.contains(&word));
                }
                _ => {}
            }
            if operators > OPERATORS_MAX {
                return Err(TemplateLimit::Operators);
            }
            self.at += length;
        }
        Ok(())
    }
}

/// The position of the first two octets that fit.
fn find(text: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<usize> {
    text.windows(2).position(fits)
}

fn is_of_a_word(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || octet == b'_'
}

/// The first word of a tag, behind the sign that takes white space away and behind white space.
fn word(text: &[u8]) -> &[u8] {
    let text = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text).trim_ascii_start();
    let length = text.iter().take_while(|octet| is_of_a_word(**octet)).count();
    &text[..length]
}

/// The length of a string with its quotes.
fn string(text: &[u8]) -> usize {
    let (quote, mut at) = (text[0], 1);
    while let Some(&octet) = text.get(at) {
        at += if octet == b'\\' { 2 } else { 1 };
        if octet == quote {
            break;
        }
    }
    at
}

/// The length of the rest of a tag that is a path of names and plain filters, its end included.
fn plain(text: &[u8]) -> Option<usize> {
    let mut rest = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text).trim_ascii_start();
    let mut names = 0;
    loop {
        let length = word(rest).len();
        if length == 0 || rest[0].is_ascii_digit() || !is_of_a_word(rest[0]) {
            return None;
        }
        names += 1;
        rest = &rest[length..];
        match rest.strip_prefix(b".") {
            Some(behind) if names < PLAIN_NAMES_MAX => rest = behind,
            Some(_) => return None,
            None => break,
        }
    }
    let mut filters = 0;
    while let Some(behind) = rest.trim_ascii_start().strip_prefix(b"|") {
        let behind = behind.trim_ascii_start();
        let filter = word(behind);
        filters += 1;
        if filters > PLAIN_FILTERS_MAX
            || !PLAIN_FILTERS.iter().any(|one| behind.starts_with(filter) && one.as_bytes() == filter)
        {
            return None;
        }
        rest = &behind[filter.len()..];
    }
    let rest = rest.trim_ascii_start();
    let rest = rest.strip_prefix(b"-").or(rest.strip_prefix(b"+")).unwrap_or(rest);
    rest.strip_prefix(b"}}").map(|behind| text.len() - behind.len())
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
