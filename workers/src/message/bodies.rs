//! The body of the message: `mixed(alternative(text, related(html, inline files)), attachments)` without the layers that have nothing to
//! hold. Boundaries come from the job id, so that each attempt has the same bytes.

use std::{collections::HashSet, fmt::Write as _};

use lettre::message::{
    Body, MessageBuilder, MultiPart, SinglePart,
    header::{ContentDisposition, ContentId, ContentType, Header, HeaderName, HeaderValue, MIME_VERSION_1_0},
};
use percent_encoding::percent_decode_str;
use postrider_schemas::job::{Attachment, Job};

use super::{ComposeError, encoding, headers::assemble as lettre_fault, template::Rendered};

/// A layer of the body.
enum Node {
    Leaf(ContentType, Body),
    Multi(MultiPart),
}

/// Files that the HTML body shows by `cid:`, and all others.
pub(super) fn inline_and_attached<'a>(job: &'a Job, html: Option<&str>) -> (Vec<&'a Attachment>, Vec<&'a Attachment>) {
    let ids: HashSet<&str> = job.attachments().iter().filter_map(|one| one.content_id.as_deref()).collect();
    let shown: HashSet<String> = match html {
        Some(html) if !ids.is_empty() => {
            cid_links(html).map(named).filter(|name| ids.contains(name.as_str())).collect()
        }
        _ => HashSet::new(),
    };
    job.attachments().iter().partition(|one| one.content_id.as_ref().is_some_and(|id| shown.contains(id)))
}

/// Adds the body to a message whose other headers are in place, and writes it all into one buffer.
pub(super) fn assemble(builder: MessageBuilder, job: &Job, content: &Rendered<'_>) -> Result<Vec<u8>, ComposeError> {
    let boundary = format!("=_postrider-{}", job.id());
    let (inline, attached) = inline_and_attached(job, content.html.as_deref());

    let text = content.text.as_deref().map(|text| Node::Leaf(ContentType::TEXT_PLAIN, encoding::text(text, &boundary)));
    let html = content.html.as_deref().map(|html| Node::Leaf(ContentType::TEXT_HTML, encoding::text(html, &boundary)));
    let html = match html {
        Some(html) if !inline.is_empty() => Some(related(html, &inline, &boundary)?),
        other => other,
    };
    let body = match (text, html) {
        (Some(text), Some(html)) => {
            let both = MultiPart::alternative().boundary(format!("{boundary}-alternative")).build();
            Node::Multi(html.join(text.join(both)))
        }
        (one, other) => {
            one.or(other).unwrap_or_else(|| Node::Leaf(ContentType::TEXT_PLAIN, encoding::text("", &boundary)))
        }
    };
    let root = if attached.is_empty() {
        body
    } else {
        let mixed = body.join(MultiPart::mixed().boundary(format!("{boundary}-mixed")).build());
        Node::Multi(attached.iter().fold(mixed, |mixed, one| mixed.singlepart(file(one, false, &boundary))))
    };
    let message = match root {
        // Not as lettre's `SinglePart`: that adds an empty line to the text.
        Node::Leaf(content_type, body) => builder.header(MIME_VERSION_1_0).header(content_type).body(body),
        Node::Multi(multi) => builder.multipart(multi),
    };
    let mut octets = message.map_err(lettre_fault)?.formatted();
    if !octets.ends_with(b"\r\n") {
        octets.extend_from_slice(b"\r\n");
    }
    Ok(octets)
}

impl Node {
    fn join(self, parent: MultiPart) -> MultiPart {
        match self {
            Self::Leaf(content_type, body) => parent.singlepart(SinglePart::builder().header(content_type).body(body)),
            Self::Multi(multi) => parent.multipart(multi),
        }
    }
}

/// The HTML with the files it shows. Lettre leaves out the `type` parameter that RFC 2387 asks for.
fn related(html: Node, inline: &[&Attachment], boundary: &str) -> Result<Node, ComposeError> {
    let content_type = format!("multipart/related; type=\"text/html\"; boundary=\"{boundary}-related\"");
    let multi = MultiPart::builder().header(ContentType::parse(&content_type).map_err(lettre_fault)?).build();
    Ok(Node::Multi(inline.iter().fold(html.join(multi), |multi, one| multi.singlepart(file(one, true, boundary)))))
}

fn file(one: &Attachment, inline: bool, boundary: &str) -> SinglePart {
    let (content_type, body) = file_body(one, boundary);
    let disposition = if inline {
        ContentDisposition::inline_with_name(&one.filename)
    } else {
        ContentDisposition::attachment(&one.filename)
    };
    let part = SinglePart::builder().header(MediaType(content_type)).header(disposition);
    match &one.content_id {
        Some(id) => part.header(ContentId::from(format!("<{id}>"))).body(body),
        None => part.body(body),
    }
}

/// Files travel in base64, exactly as they are. Composite types may not (RFC 2045 6.4): a message goes verbatim where it can, and what cannot travel
/// under its type goes as octets, because a reader would take it apart.
fn file_body(one: &Attachment, boundary: &str) -> (String, Body) {
    let kind = one.content_type.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let octets = || ("application/octet-stream".to_owned(), encoding::binary(&one.content));
    match kind.as_str() {
        "message" => encoding::verbatim(&one.content, boundary)
            .map_or_else(octets, |body| (one.content_type.trim_end().to_owned(), body)),
        "multipart" => octets(),
        _ => (one.content_type.trim_end().to_owned(), encoding::binary(&one.content)),
    }
}

/// A `Content-Type` exactly as the job has it: lettre's own type would refuse some and rewrite others.
#[derive(Clone)]
struct MediaType(String);

impl Header for MediaType {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Content-Type")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(text.to_owned()))
    }

    fn display(&self) -> HeaderValue {
        let mut folded = String::with_capacity(self.0.len() + 8);
        // Parameters go to lines of their own where all in one would be long. Within quotes a fold before a blank is lawful as well.
        for (n, piece) in self.0.split("; ").enumerate() {
            let separator = if n == 0 {
                ""
            } else if self.0.len() > 60 {
                ";\r\n "
            } else {
                "; "
            };
            let _ = write!(folded, "{separator}{piece}");
        }
        HeaderValue::dangerous_new_pre_encoded(Self::name(), self.0.clone(), folded)
    }
}

/// The `cid:` links of an HTML body, without `cid:`. One ends where another may begin, so that no octet is looked at for two of them: a content id holds
/// no colon.
fn cid_links(html: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| c.is_whitespace() || "\"'<>):".contains(c);
    html.match_indices("cid:").map(move |(at, scheme)| {
        let link = &html[at + scheme.len()..];
        &link[..link.find(ends).unwrap_or(link.len())]
    })
}

/// What a link names, with the escapes of URLs and of HTML undone.
fn named(link: &str) -> String {
    percent_decode_str(&link.replace("&amp;", "&")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(html: &str, expected: &[&str]) {
        assert_eq!(cid_links(html).map(named).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn links_end_where_html_ends_them() {
        check("<img src=\"cid:a@b\"> <img src=cid:c> url(cid:d) 'cid:e' cid:f", &["a@b", "c", "d", "e", "f"]);
        check("cid:a%20b&amp;c", &["a b&c"]);
        check("cid:cid:x", &["cid", "x"]);
        check("cid:", &[""]);
    }

    /// However many links there are, and wherever they end.
    #[test]
    fn the_links_together_are_no_longer_than_the_html() {
        for html in ["cid:", "cid:a", "cid:cid", "cid:a ", "cid", "cid:%41&amp;"] {
            let html = html.repeat(20_000);
            let octets: usize = cid_links(&html).map(str::len).sum();
            assert!(octets <= html.len(), "{octets} octets of {}", html.len());
        }
    }
}
