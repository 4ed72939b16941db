//! `multipart/form-data` (RFC 7578), put together in one piece: what is sent is known before it goes out, so that it can be looked at.

use bytes::Bytes;
use memchr::memmem;

/// A form under construction.
#[derive(Default)]
pub struct Form<'a> {
    parts: Vec<FormPart<'a>>,
}

struct FormPart<'a> {
    head: String,
    content: std::borrow::Cow<'a, [u8]>,
}

impl<'a> Form<'a> {
    /// One more field.
    pub fn field(&mut self, name: &str, value: &str) {
        let head = format!("Content-Disposition: form-data; name=\"{}\"\r\n\r\n", escaped(name));
        self.parts.push(FormPart { head, content: value.as_bytes().to_owned().into() });
    }

    /// One more file.
    pub fn file(
        &mut self,
        name: &str,
        filename: &str,
        content_type: &str,
        content: impl Into<std::borrow::Cow<'a, [u8]>>,
    ) {
        let head = format!(
            "Content-Disposition: form-data; name=\"{}\"; filename=\"{}\"\r\nContent-Type: {content_type}\r\n\r\n",
            escaped(name),
            escaped(filename)
        );
        self.parts.push(FormPart { head, content: content.into() });
    }

    /// The media type and the body.
    pub fn finish(self) -> (String, Bytes) {
        let mut boundary = "postrider-form-boundary".to_owned();
        let finder = |boundary: &str| {
            let finder = memmem::Finder::new(boundary);
            self.parts
                .iter()
                .any(|part| finder.find(&part.content).is_some() || finder.find(part.head.as_bytes()).is_some())
        };
        // Ends: each round looks for a longer one than any that the contents can hold at one place.
        let mut n = 0_u32;
        while finder(&boundary) {
            n += 1;
            boundary = format!("postrider-form-boundary-{n}-");
        }
        let size: usize = self.parts.iter().map(|part| part.head.len() + part.content.len() + boundary.len() + 8).sum();
        let mut body = Vec::with_capacity(size + boundary.len() + 8);
        for part in &self.parts {
            for piece in [b"--", boundary.as_bytes(), b"\r\n", part.head.as_bytes(), &part.content, b"\r\n"] {
                body.extend_from_slice(piece);
            }
        }
        for piece in [b"--", boundary.as_bytes(), b"--\r\n"] {
            body.extend_from_slice(piece);
        }
        (format!("multipart/form-data; boundary={boundary}"), body.into())
    }
}

/// Names as browsers write them: UTF-8 as it is, quotes and line ends as escapes.
fn escaped(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_its_parts_in_order() {
        let mut form = Form::default();
        form.field("o:tag", "a\r\nb");
        form.file("attachment", "größe \"1\".txt", "text/plain", &b"x"[..]);
        let (content_type, body) = form.finish();
        assert_eq!(content_type, "multipart/form-data; boundary=postrider-form-boundary");
        let expected = "--postrider-form-boundary\r\nContent-Disposition: form-data; name=\"o:tag\"\r\n\r\na\r\nb\r\n\
            --postrider-form-boundary\r\nContent-Disposition: form-data; name=\"attachment\"; filename=\"größe %221%22.txt\"\r\n\
            Content-Type: text/plain\r\n\r\nx\r\n--postrider-form-boundary--\r\n";
        assert_eq!(String::from_utf8(body.to_vec()).unwrap(), expected);
    }

    #[test]
    fn the_boundary_stands_in_no_part() {
        let mut form = Form::default();
        form.field("text", "postrider-form-boundary and postrider-form-boundary-1-");
        let (content_type, _) = form.finish();
        assert_eq!(content_type, "multipart/form-data; boundary=postrider-form-boundary-2-");
    }
}
