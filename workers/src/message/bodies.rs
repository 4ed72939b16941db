//! The body of the message: `mixed(alternative(text, related(html, inline files)), attachments)` without the layers that have nothing to
//! hold. Boundaries come from the job id, so that each attempt has the same bytes.

use std::{borrow::Cow, collections::HashSet, fmt::Write as _};

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
            let html = unescaped(html);
            let both = cid_links(&html).flat_map(|link| [named(link), link.to_owned()]);
            both.filter(|name| ids.contains(name.as_str())).collect()
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
    let invitation = match attached.iter().find_map(|one| calendar_text(one).map(|text| (one, text))) {
        Some((one, text)) => Some(Node::Leaf(
            ContentType::parse(one.content_type.trim()).map_err(lettre_fault)?,
            encoding::text(text, &boundary),
        )),
        None => None,
    };
    let mut forms: Vec<Node> = [text, html, invitation].into_iter().flatten().collect();
    let body = if forms.len() > 1 {
        let all = MultiPart::alternative().boundary(format!("{boundary}-alternative")).build();
        Node::Multi(forms.into_iter().fold(all, |all, form| form.join(all)))
    } else {
        forms.pop().unwrap_or_else(|| Node::Leaf(ContentType::TEXT_PLAIN, encoding::text("", &boundary)))
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

/// The text of a file that is an invitation (RFC 6047): mail programs look for it beside the bodies. The same file is attached as well.
fn calendar_text(one: &Attachment) -> Option<&str> {
    let (essence, parameters) = one.content_type.split_once(';')?;
    let has_method = parameters
        .split(';')
        .any(|parameter| parameter.split('=').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("method")));
    let is_calendar = essence.trim().eq_ignore_ascii_case("text/calendar");
    std::str::from_utf8(&one.content).ok().filter(|_| is_calendar && has_method)
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

/// The `cid:` links of an HTML body whose character references are undone, without `cid:`. One ends where another may begin, so that no octet is looked
/// at for two of them: a content id holds no colon.
fn cid_links(html: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| c.is_whitespace() || "\"'<>(),;\\:".contains(c);
    let is_scheme = |at: &usize| {
        html.as_bytes()[..*at].get(at.wrapping_sub(3)..).is_some_and(|word| word.eq_ignore_ascii_case(b"cid"))
    };
    html.match_indices(':').map(|(at, _)| at).filter(is_scheme).map(move |at| {
        let link = &html[at + 1..];
        &link[..link.find(ends).unwrap_or(link.len())]
    })
}

/// What a link names, with the escapes of URLs undone.
fn named(link: &str) -> String {
    percent_decode_str(link).decode_utf8_lossy().into_owned()
}

/// The HTML with those character references undone that may stand in a link.
fn unescaped(html: &str) -> Cow<'_, str> {
    if !html.contains('&') {
        return Cow::Borrowed(html);
    }
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (c, length) = reference(rest).unwrap_or(('&', 1));
        out.push(c);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character that a reference such as `&quot;`, `&#39;` or `&#x63;` stands for, and the reference's length.
fn reference(text: &str) -> Option<(char, usize)> {
    const NAMED: [(&str, char); 11] = [
        ("&amp", '&'),
        ("&quot", '"'),
        ("&lt", '<'),
        ("&gt", '>'),
        ("&apos", '\''),
        ("&colon", ':'),
        ("&lpar", '('),
        ("&rpar", ')'),
        ("&commat", '@'),
        ("&period", '.'),
        ("&nbsp", '\u{a0}'),
    ];
    let ended = |length: usize| length + usize::from(text[length..].starts_with(';'));
    let Some(number) = text.strip_prefix("&#") else {
        let (name, c) = NAMED
            .iter()
            .find(|(name, _)| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))?;
        return Some((*c, ended(name.len())));
    };
    let (radix, digits) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (16, digits),
        None => (10, number),
    };
    let count = digits.bytes().take(10).take_while(|c| char::from(*c).is_digit(radix)).count();
    let c = char::from_u32(u32::from_str_radix(&digits[..count], radix).ok()?)?;
    Some((c, ended(text.len() - digits.len() + count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(html: &str, expected: &[&str]) {
        assert_eq!(cid_links(&unescaped(html)).map(named).collect::<Vec<_>>(), expected, "{html}");
    }

    #[test]
    fn links_end_where_html_ends_them() {
        check("<img src=\"cid:a@b\"> <img src=cid:c> url(cid:d) 'cid:e' cid:f", &["a@b", "c", "d", "e", "f"]);
        check("cid:a%20b&amp;c", &["a b&c"]);
        check("cid:cid:x", &["cid", "x"]);
        check("cid:", &[""]);
        check("url(&quot;cid:hero&quot;) url(&#39;cid:apos&#39;) url(&QUOT;cid:x&#x22;)", &["hero", "apos", "x"]);
        check(
            "<img src=\"CID:logo\"><img src='&#x63;id:a'><img src=cid&colon;b><img src=&#99;id&#58;c>",
            &["logo", "a", "b", "c"],
        );
        check("<img srcset=\"cid:s 1x, cid:m 2x,cid:l\">", &["s", "m", "l"]);
        check("cid:pic%2B1@shop.example", &["pic+1@shop.example"]);
        check("&#x110000; &#; & &amp;quot; é:", &[]);
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
