//! Forms as HTTP clients send them: `application/x-www-form-urlencoded` and `multipart/form-data` (RFC 7578). Fields are taken out one by one; what is left is
//! refused by name.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use memchr::memmem;

use crate::problem::{Kind, Problem};

/// Fields of one form, at most.
const FIELDS_MAX: usize = 5000;

/// A file of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name.
    pub name: String,
    /// Its media type, where the client says one.
    pub kind: Option<String>,
    /// What it holds.
    pub content: Bytes,
}

/// The fields of a form, each with its values in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Form {
    texts: BTreeMap<String, Vec<String>>,
    files: BTreeMap<String, Vec<File>>,
}

impl Form {
    /// Reads a form of either type, as its headers say.
    pub fn of(headers: &HeaderMap, body: &Bytes) -> Result<Self, Problem> {
        match boundary(headers) {
            Some(mark) => Self::of_parts(body, &mark),
            None if essence(headers) == "multipart/form-data" => Err(malformed("its Content-Type has no boundary")),
            None => Self::of_query(body),
        }
    }

    /// Reads names and values between `&`.
    pub fn of_query(body: &[u8]) -> Result<Self, Problem> {
        let mut form = Self::default();
        for (count, (name, value)) in url::form_urlencoded::parse(body).enumerate() {
            if count == FIELDS_MAX {
                return Err(malformed(&format!("it has more than {FIELDS_MAX} fields")));
            }
            form.texts.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Ok(form)
    }

    fn of_parts(body: &Bytes, mark: &str) -> Result<Self, Problem> {
        let mut form = Self::default();
        for (count, part) in parts(body, mark)?.into_iter().enumerate() {
            if count == FIELDS_MAX {
                return Err(malformed(&format!("it has more than {FIELDS_MAX} fields")));
            }
            let Part { name, file, kind, content } = part;
            if let Some(file) = file {
                form.files.entry(name).or_default().push(File { name: file, kind, content });
            } else {
                let text = String::from_utf8(content.to_vec());
                let text = text.map_err(|_| Problem::field(Kind::Invalid, pointer(&name), "is no UTF-8"))?;
                form.texts.entry(name).or_default().push(text);
            }
        }
        Ok(form)
    }

    /// A problem of a field.
    pub fn wrong(&self, name: &str, detail: impl Into<String>) -> Problem {
        Problem::field(Kind::Invalid, pointer(name), detail)
    }

    /// Takes a field that stands there once.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.texts.remove(name).unwrap_or_default();
        if values.len() > 1 {
            return Err(self.wrong(name, "stands there several times"));
        }
        Ok(values.pop())
    }

    /// Takes all values of a field.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        self.texts.remove(name).unwrap_or_default()
    }

    /// Takes all files of a field.
    pub fn files(&mut self, name: &str) -> Vec<File> {
        self.files.remove(name).unwrap_or_default()
    }

    /// Takes the fields whose names begin so, without that beginning.
    pub fn beginning(&mut self, start: &str) -> Vec<(String, Vec<String>)> {
        let names: Vec<String> = self.texts.keys().filter(|name| name.starts_with(start)).cloned().collect();
        let cut = |name: String| (name[start.len()..].to_owned(), self.texts.remove(&name).unwrap_or_default());
        names.into_iter().map(cut).collect()
    }

    /// Takes `NAME.1`, `NAME.2` and so on, in the order of their numbers.
    pub fn members(&mut self, name: &str) -> Result<Vec<String>, Problem> {
        let mut found = Vec::new();
        for (rest, values) in self.beginning(&format!("{name}.")) {
            let number: u32 = rest.parse().map_err(|_| self.wrong(name, "expected members with numbers"))?;
            found.push((number, values));
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found.into_iter().flat_map(|(_, values)| values).collect())
    }

    /// Takes pairs such as `NAME.1.Name` and `NAME.1.Value`.
    pub fn numbered(&mut self, name: &str, [first, second]: [&str; 2]) -> Result<Vec<(String, String)>, Problem> {
        let mut found: BTreeMap<u32, (Option<String>, Option<String>)> = BTreeMap::new();
        for (rest, mut values) in self.beginning(&format!("{name}.")) {
            let (number, member) = rest.split_once('.').unwrap_or((&rest, ""));
            let number: u32 = number.parse().map_err(|_| self.wrong(name, "expected members with numbers"))?;
            let pair = found.entry(number).or_default();
            match member {
                member if member == first => pair.0 = values.pop(),
                member if member == second => pair.1 = values.pop(),
                _ => return Err(self.wrong(name, format!("expected {first} and {second}"))),
            }
        }
        let whole = |(one, other): (Option<String>, Option<String>)| {
            let missing = || self.wrong(name, format!("needs a {first}"));
            Ok((one.ok_or_else(missing)?, other.unwrap_or_default()))
        };
        found.into_values().map(whole).collect()
    }

    /// Refuses a field that has no counterpart here.
    pub fn refuse(&mut self, name: &str, why: &str) -> Result<(), Problem> {
        let is_there = self.texts.remove(name).is_some_and(|values| values.iter().any(|value| !value.is_empty()));
        if is_there || self.files.remove(name).is_some() {
            return Err(Problem::field(Kind::Unsupported, pointer(name), format!("is not supported: {why}")));
        }
        Ok(())
    }

    /// Refuses what nobody took.
    pub fn end(self) -> Result<(), Problem> {
        match self.texts.keys().chain(self.files.keys()).next() {
            None => Ok(()),
            // The name of a field is of the sender, but a name that looks like one tells nothing else.
            Some(name) if pointer(name).len() > 1 => {
                Err(Problem::field(Kind::Unsupported, pointer(name), "is no field that is known here"))
            }
            Some(_) => Err(Problem::field(Kind::Unsupported, "", "holds a field that is not known here")),
        }
    }
}

/// The pointer of a field, where its name looks like one.
fn pointer(name: &str) -> String {
    let is_name = name.len() <= 64 && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-.:".contains(&c));
    if is_name { format!("/{name}") } else { String::new() }
}

fn malformed(why: &str) -> Problem {
    Problem::new(Kind::Malformed, format!("The body is no form: {why}."))
}

fn essence(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What separates the parts of a form; nothing where it has none. Clients make another one for each request.
pub fn boundary(headers: &HeaderMap) -> Option<String> {
    if essence(headers) != "multipart/form-data" {
        return None;
    }
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    value.split(';').skip(1).find_map(|parameter| {
        let (name, mark) = parameter.split_once('=')?;
        let mark = mark.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !mark.is_empty() && mark.len() <= 70).then(|| mark.to_owned())
    })
}

struct Part {
    name: String,
    file: Option<String>,
    kind: Option<String>,
    content: Bytes,
}

/// The parts between the marks. What stands in front of the first one and behind the last one counts for nothing.
fn parts(body: &Bytes, mark: &str) -> Result<Vec<Part>, Problem> {
    let delimiter = format!("\r\n--{mark}");
    let find = |from: usize| memmem::find(&body[from..], delimiter.as_bytes()).map(|at| from + at);
    let cut_off = || malformed("its end is missing");
    // The first mark may stand at the very beginning, without a line in front of it.
    let mut at = if body.starts_with(&delimiter.as_bytes()[2..]) {
        delimiter.len() - 2
    } else {
        find(0).ok_or_else(cut_off)? + delimiter.len()
    };
    let mut found = Vec::new();
    loop {
        let rest = &body[at..];
        if rest.starts_with(b"--") {
            return Ok(found);
        }
        let line = memmem::find(rest, b"\r\n").ok_or_else(cut_off)?;
        if !rest[..line].iter().all(|octet| matches!(octet, b' ' | b'\t')) {
            return Err(malformed("something stands behind a boundary"));
        }
        let start = at + line + 2;
        let end = find(start).ok_or_else(cut_off)?;
        found.push(part(body.slice(start..end))?);
        at = end + delimiter.len();
    }
}

fn part(whole: Bytes) -> Result<Part, Problem> {
    let (head, content) = match memmem::find(&whole, b"\r\n\r\n") {
        Some(at) => (whole.slice(..at), whole.slice(at + 4..)),
        // A part without a body.
        None => (whole, Bytes::new()),
    };
    let (mut name, mut file, mut kind, mut is_transferred) = (None, None, None, false);
    for line in String::from_utf8_lossy(&head).split("\r\n") {
        let Some((field, value)) = line.split_once(':') else { continue };
        match field.trim().to_ascii_lowercase().as_str() {
            "content-disposition" => {
                name = parameter(value, "name");
                file =
                    parameter(value, "filename*").map(|text| extended(&text)).or_else(|| parameter(value, "filename"));
            }
            "content-type" => kind = Some(value.trim().to_owned()).filter(|kind| !kind.is_empty()),
            "content-transfer-encoding" => {
                let value = value.trim().to_ascii_lowercase();
                is_transferred = !matches!(value.as_str(), "binary" | "8bit" | "7bit");
            }
            _ => {}
        }
    }
    if is_transferred {
        return Err(malformed("a part has a Content-Transfer-Encoding, which HTTP does not use (RFC 7578 4.7)"));
    }
    let name = name.ok_or_else(|| malformed("a part has no name"))?;
    Ok(Part { name, file, kind, content })
}

/// A parameter of a header: a word, or a text in quotes with `\"` or, as browsers write it, `%22` for a quote.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, behind) = rest.split_once('=')?;
        let behind = behind.trim_start();
        let (text, after) = if let Some(quoted) = behind.strip_prefix('"') {
            quoted_text(quoted)?
        } else {
            let (text, after) = behind.split_once(';').unwrap_or((behind, ""));
            (text.trim().to_owned(), after)
        };
        if name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted) {
            return Some(text);
        }
        rest = after;
    }
}

fn quoted_text(text: &str) -> Option<(String, &str)> {
    let (mut found, mut is_escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => {
                found.push(c);
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            '"' => return Some((found.replace("%22", "\""), &text[at + 1..])),
            _ => found.push(c),
        }
    }
    None
}

/// `UTF-8''a%20b.pdf` (RFC 5987).
fn extended(text: &str) -> String {
    let encoded = text.rsplit('\'').next().unwrap_or_default();
    percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multipart(body: &str) -> Result<Form, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "multipart/form-data; boundary=\"m-1\"".parse().unwrap());
        Form::of(&headers, &Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn a_form_in_parts_has_texts_and_files() {
        let mut form = multipart(
            "--m-1\r\nContent-Disposition: form-data; name=\"to\"\r\n\r\na@b.example\r\n--m-1\r\n\
             Content-Disposition: form-data; name=\"to\"\r\n\r\nZoë --m-1\r\n--m-1\r\n\
             content-disposition: form-data; name=attachment; filename=\"a \\\"b\\\".txt\"\r\nContent-Type: text/plain\r\n\r\nhi\r\n\r\n\r\n--m-1--\r\n",
        )
        .unwrap();
        assert_eq!(form.texts("to"), ["a@b.example", "Zoë --m-1"]);
        let files = form.files("attachment");
        assert_eq!((files[0].name.as_str(), files[0].kind.as_deref()), ("a \"b\".txt", Some("text/plain")));
        assert_eq!(files[0].content, "hi\r\n\r\n");
        assert!(form.end().is_ok());
    }

    #[test]
    fn names_of_files_are_read_in_either_form() {
        for (header, expected) in [
            ("filename*=UTF-8''Zo%C3%AB.txt; filename=\"x\"", "Zoë.txt"),
            ("filename=\"x\"; filename*=utf-8''a%20b", "a b"),
            ("filename=\"a%22b\"", "a\"b"),
            ("filename=a.txt", "a.txt"),
        ] {
            let body = format!("--m-1\r\nContent-Disposition: form-data; name=\"f\"; {header}\r\n\r\n\r\n--m-1--");
            assert_eq!(multipart(&body).unwrap().files("f")[0].name, expected, "{header}");
        }
    }

    #[test]
    fn what_is_no_form_is_malformed() {
        let open = "--m-1\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx";
        for body in ["", "x", "--m-1", "--m-1\r\n", open, "--m-1 x\r\n\r\n--m-1--", "--m-1\r\n\r\nx\r\n--m-1--"] {
            assert_eq!(multipart(body).unwrap_err().kind, Kind::Malformed, "{body}");
        }
        assert_eq!(multipart("--m-1--").unwrap(), Form::default());
        let encoded = format!("{}\r\n--m-1--", open.replacen("\r\n", "\r\nContent-Transfer-Encoding: base64\r\n", 1));
        assert!(multipart(&encoded).is_err());
    }

    #[test]
    fn members_come_in_the_order_of_their_numbers() {
        let mut form = Form::of_query(b"a.member.10=x&a.member.2=y&t.1.Name=n&t.1.Value=v&t.2.Name=m&b=1&b=2").unwrap();
        assert_eq!(form.members("a.member").unwrap(), ["y", "x"]);
        let pairs = form.numbered("t", ["Name", "Value"]).unwrap();
        assert_eq!(pairs, [("n".to_owned(), "v".to_owned()), ("m".to_owned(), String::new())]);
        assert_eq!(form.text("b").unwrap_err().fields[0].pointer, "/b");
        assert!(Form::of_query(b"a.x=1").unwrap().members("a").is_err());
        assert_eq!(Form::of_query(b"ada%40c.example=1").unwrap().end().unwrap_err().fields[0].pointer, "");
    }
}
