//! Takes a JSON document of a vendor's form apart, field by field. What is left in the end is refused by name: nothing is dropped in silence.

use std::collections::BTreeMap;

use postrider_schemas::{
    MailboxV1,
    wire::{HeaderV1, ListUnsubscribeV1, MailboxPartsV1},
};
use serde_json::{Map, Value};

use crate::problem::{Kind, Problem};

/// An object whose fields are taken out one by one.
pub struct Fields {
    map: Map<String, Value>,
    at: String,
}

impl Fields {
    /// The document of a body.
    pub fn of_body(body: &[u8]) -> Result<Self, Problem> {
        let value = serde_json::from_slice(body).map_err(|error| {
            // Line and column only: the text of the error may hold a value.
            let place = format!("line {}, column {}", error.line(), error.column());
            Problem::new(Kind::Malformed, format!("The body is no JSON: something is wrong at {place}."))
        })?;
        Self::of(value, "")
    }

    /// The object at this place.
    pub fn of(value: Value, at: impl Into<String>) -> Result<Self, Problem> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Self { map, at }),
            _ if at.is_empty() => Err(Problem::new(Kind::Malformed, "The body is no JSON object.")),
            _ => Err(Problem::field(Kind::Invalid, at, "expected an object")),
        }
    }

    /// The pointer of a field.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.at)
    }

    /// A problem of a field.
    pub fn wrong(&self, name: &str, detail: impl Into<String>) -> Problem {
        Problem::field(Kind::Invalid, self.at(name), detail)
    }

    /// Takes a field; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "expected a text")),
        }
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "expected true or false")),
        }
    }

    /// Takes a whole number.
    pub fn number(&mut self, name: &str) -> Result<Option<i64>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.wrong(name, "expected a whole number")),
        }
    }

    /// Takes a list; one value counts as a list of it.
    pub fn list(&mut self, name: &str) -> Vec<Value> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        }
    }

    /// Takes a text or a list of texts.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, Problem> {
        let taken = self.list(name);
        let one = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong(name, "expected a text, or a list of texts")),
        };
        taken.into_iter().map(one).collect()
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, Problem> {
        let at = self.at(name);
        self.take(name).map(|value| Self::of(value, at)).transpose()
    }

    /// Takes an object of names and texts; numbers and flags count as texts.
    pub fn names(&mut self, name: &str) -> Result<BTreeMap<String, String>, Problem> {
        self.object(name)?.map_or_else(|| Ok(BTreeMap::new()), Self::rest)
    }

    /// All that is left, as names and texts.
    pub fn rest(self) -> Result<BTreeMap<String, String>, Problem> {
        let Self { map, at } = self;
        let one = |(key, value): (String, Value)| match value {
            Value::String(text) => Ok((key, text)),
            Value::Number(_) | Value::Bool(_) => Ok((key, value.to_string())),
            _ => Err(Problem::field(Kind::Invalid, at.clone(), "expected texts")),
        };
        map.into_iter().map(one).collect()
    }

    /// Takes a list of objects.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Self>, Problem> {
        let at = self.at(name);
        self.list(name).into_iter().enumerate().map(|(n, value)| Self::of(value, format!("{at}/{n}"))).collect()
    }

    /// Takes mailboxes of the form `{address, name}`, under the names that the vendor gives to the two.
    pub fn mailboxes(&mut self, name: &str, address: &str, shown: &str) -> Result<Vec<MailboxV1>, Problem> {
        let one = |mut object: Self| -> Result<MailboxV1, Problem> {
            let found = object.text(address)?.ok_or_else(|| object.wrong(address, "is required"))?;
            let parts = MailboxPartsV1 { address: found, name: object.text(shown)?.filter(|name| !name.is_empty()) };
            object.end()?;
            Ok(MailboxV1::Parts(parts))
        };
        self.objects(name)?.into_iter().map(one).collect()
    }

    /// Refuses a field that has no counterpart here.
    pub fn refuse(&mut self, name: &str, why: &str) -> Result<(), Problem> {
        match self.take(name) {
            None => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(_) => Err(Problem::field(Kind::Unsupported, self.at(name), format!("is not supported: {why}"))),
        }
    }

    /// Refuses what nobody took.
    pub fn end(self) -> Result<(), Problem> {
        let left = self.map.iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name);
        match left {
            None => Ok(()),
            // The name of a field is of the sender, but a name that looks like one tells nothing else.
            Some(name) if name.len() <= 64 && name.bytes().all(|c| c.is_ascii_alphabetic() || c == b'_') => {
                Err(Problem::field(Kind::Unsupported, self.at(name), "is no field that is known here"))
            }
            Some(_) => Err(Problem::field(Kind::Unsupported, self.at, "holds a field that is not known here")),
        }
    }
}

/// Extra headers, and what of them has a field of its own in a job.
#[derive(Default)]
pub struct Headers {
    /// Those that stay headers.
    pub extra: Vec<HeaderV1>,
    /// `List-Unsubscribe`.
    pub list_unsubscribe: Option<ListUnsubscribeV1>,
    /// `Reply-To`.
    pub reply_to: Option<String>,
}

/// Sorts headers. `List-Unsubscribe` with its company and `Reply-To` are fields of a job.
pub fn headers(list: impl IntoIterator<Item = (String, String)>) -> Headers {
    let mut headers = Headers::default();
    let mut is_one_click = false;
    for (name, value) in list {
        match name.to_ascii_lowercase().as_str() {
            "list-unsubscribe" => headers.list_unsubscribe = Some(list_unsubscribe(&value)),
            "list-unsubscribe-post" => is_one_click = value.eq_ignore_ascii_case("List-Unsubscribe=One-Click"),
            "reply-to" => headers.reply_to = Some(value),
            _ => headers.extra.push(HeaderV1 { name, value }),
        }
    }
    if let Some(one) = &mut headers.list_unsubscribe {
        one.one_click = is_one_click && one.url.is_some();
    }
    headers
}

/// `<https://shop.example/u/1>, <mailto:u@shop.example>`
fn list_unsubscribe(value: &str) -> ListUnsubscribeV1 {
    let ways = value.split(',').map(|way| way.trim().trim_start_matches('<').trim_end_matches('>'));
    let (mailto, url): (Vec<&str>, Vec<&str>) = ways.partition(|way| way.to_ascii_lowercase().starts_with("mailto:"));
    let first = |list: Vec<&str>| list.first().map(|one| (*one).to_owned());
    ListUnsubscribeV1 { url: first(url), mailto: first(mailto), one_click: false }
}

/// The media type that a file's name stands for.
pub fn media_type(filename: &str) -> &'static str {
    let end = filename.rsplit_once('.').map_or("", |(_, end)| end).to_ascii_lowercase();
    match end.as_str() {
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "txt" | "log" => "text/plain",
        "csv" => "text/csv",
        "htm" | "html" => "text/html",
        "ics" => "text/calendar",
        "json" => "application/json",
        "xml" => "application/xml",
        "zip" => "application/zip",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_takes_is_refused_by_name_and_null_is_nothing() {
        let mut fields = Fields::of(json!({"a": "x", "b": null, "list": ["y"], "more": 7}), "/inner").ok().unwrap();
        assert_eq!(fields.text("a").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.texts("list").unwrap(), ["y"]);
        let problem = fields.end().unwrap_err();
        assert_eq!((problem.kind, problem.fields[0].pointer.as_str()), (Kind::Unsupported, "/inner/more"));
        let strange = Fields::of(json!({"ada@c.example": 1}), "").ok().unwrap().end().unwrap_err();
        assert_eq!(strange.fields[0].pointer, "");
        assert!(Fields::of(json!({"b": null}), "").ok().unwrap().end().is_ok());
    }

    #[test]
    fn headers_with_a_field_of_their_own_are_sorted_out() {
        let pairs = [
            ("List-Unsubscribe", "<mailto:u@shop.example>, <https://shop.example/u>"),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
            ("reply-to", "help@shop.example"),
            ("X-Order", "1"),
        ];
        let sorted = headers(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let list = sorted.list_unsubscribe.unwrap();
        assert_eq!((list.url.as_deref(), list.one_click), (Some("https://shop.example/u"), true));
        assert_eq!(list.mailto.as_deref(), Some("mailto:u@shop.example"));
        assert_eq!((sorted.reply_to.as_deref(), sorted.extra.len()), (Some("help@shop.example"), 1));
    }
}
