//! Takes `multipart/form-data` apart, without a line of ours that puts it together.

use wiremock::Request;

/// A part of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub filename: Option<String>,
    pub content_type: Option<String>,
    pub content: Vec<u8>,
}

impl Part {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.content).unwrap()
    }
}

/// The parts of a request's form, in order.
pub fn parts(request: &Request) -> Vec<Part> {
    let content_type = super::header(request, "content-type");
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let mark = format!("\r\n--{boundary}");
    let mut rest = &request.body[..];
    rest = rest.strip_prefix(format!("--{boundary}").as_bytes()).unwrap();
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, mark.as_bytes()).unwrap();
        parts.push(read(&part[..end]));
        rest = &part[end + mark.len()..];
    }
    assert_eq!(rest, b"--\r\n");
    parts
}

/// Fields by this name.
pub fn values<'a>(parts: &'a [Part], name: &str) -> Vec<&'a str> {
    parts.iter().filter(|part| part.name == name && part.filename.is_none()).map(Part::text).collect()
}

fn read(part: &[u8]) -> Part {
    let end = find(part, b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&part[..end]).unwrap();
    let quoted = |key: &str| {
        let (_, rest) = head.split_once(&format!("; {key}=\""))?;
        Some(rest.split('"').next().unwrap().to_owned())
    };
    let content_type = head.lines().find_map(|line| line.strip_prefix("Content-Type: "));
    Part {
        name: quoted("name").unwrap(),
        filename: quoted("filename"),
        content_type: content_type.map(str::to_owned),
        content: part[end + 4..].to_vec(),
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
