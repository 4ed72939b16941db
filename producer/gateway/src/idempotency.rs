//! Idempotency keys: how they are read, and what follows from them.

use http::HeaderMap;
use memchr::memmem;
use postrider_schemas::{IdempotencyKey, JobId, Tenant};
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Variant, Version};

use crate::{
    form,
    problem::{Kind, Problem},
};

/// Longest key of a document.
const KEY_MAX: usize = 256;

/// The `Idempotency-Key` of a request. The draft (draft-ietf-httpapi-idempotency-key-header-07) wants it in quotes, clients send it without: both are
/// read.
pub fn from_headers(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = |detail: &str| Problem::new(Kind::BadIdempotencyKey, detail);
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong("There are several Idempotency-Key headers."));
    }
    let text = value.to_str().map_err(|_| wrong("An idempotency key is 1 to 256 visible ASCII characters."))?.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match IdempotencyKey::parse(text) {
        Ok(_) => Ok(Some(text.to_owned())),
        Err(error) => Err(wrong(&format!("{error}."))),
    }
}

/// The id of the job with this key: the same on every gateway, without asking anybody (UUID version 8 over tenant and key).
pub fn job_id(tenant: &Tenant, key: &str) -> JobId {
    let mut hasher = Sha256::new();
    hasher.update(b"postrider.job\0");
    hasher.update(tenant.as_str());
    hasher.update([0]);
    hasher.update(key);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize()[..16]);
    JobId(Builder::from_bytes(bytes).with_variant(Variant::RFC4122).with_version(Version::Custom).into_uuid())
}

/// The key of one of several jobs of a request.
pub fn of_part(key: &str, position: usize) -> String {
    let part = format!("{key}/{position}");
    if part.len() <= KEY_MAX { part } else { format!("{}/{position}", hex(&Sha256::digest(key))) }
}

/// Tells two requests apart: what was asked and its bytes as they came. Two requests with different bytes may mean the same job; two with the same bytes
/// always do, also where they hold times such as "in 1 hour". What separates the parts of a form is another text in each request, and counts for nothing.
pub fn fingerprint(method: &str, path: &str, headers: &HeaderMap, body: &[u8]) -> String {
    let mut hasher = Sha256::new();
    for part in [method.as_bytes(), path.as_bytes()] {
        hasher.update(part);
        hasher.update([0]);
    }
    match form::boundary(headers) {
        None => hasher.update(body),
        Some(mark) => {
            let finder = memmem::Finder::new(mark.as_bytes());
            let mut rest = body;
            while let Some(at) = finder.find(rest) {
                hasher.update(&rest[..at]);
                rest = &rest[at + mark.len()..];
            }
            hasher.update(rest);
        }
    }
    hex(&hasher.finalize()[..16])
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, Kind> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("idempotency-key", value.parse().unwrap());
        }
        from_headers(&headers).map_err(|problem| problem.kind)
    }

    #[test]
    fn a_key_is_read_with_and_without_quotes() {
        assert_eq!(read(&[]), Ok(None));
        for text in ["order:1", "\"order:1\"", "  order:1 "] {
            assert_eq!(read(&[text]), Ok(Some("order:1".to_owned())), "{text}");
        }
        for values in [vec![""], vec!["\"\""], vec!["a b"], vec!["a", "a"]] {
            assert_eq!(read(&values), Err(Kind::BadIdempotencyKey), "{values:?}");
        }
    }

    #[test]
    fn an_id_follows_from_tenant_and_key_alone() {
        let [shop, news] = ["shop", "news"].map(|name| Tenant::parse(name).unwrap());
        let id = job_id(&shop, "order:1");
        assert_eq!(id.to_string(), "0fb1beb4-5dd5-8aff-9aef-97479c76f92b");
        assert_eq!(id, job_id(&shop, "order:1"));
        assert_ne!(id, job_id(&news, "order:1"));
        assert_ne!(id, job_id(&shop, "order:2"));
        assert_eq!((id.0.get_version_num(), id.0.get_variant()), (8, Variant::RFC4122));
    }

    #[test]
    fn what_separates_the_parts_of_a_form_counts_for_nothing() {
        let print = |mark: &str, text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", format!("multipart/form-data; boundary={mark}").parse().unwrap());
            fingerprint("POST", "/", &headers, format!("--{mark}\r\n\r\n{text}\r\n--{mark}--").as_bytes())
        };
        assert_eq!(print("a1", "x"), print("b22", "x"));
        assert_ne!(print("a1", "x"), print("a1", "y"));
    }

    #[test]
    fn keys_of_parts_stay_keys() {
        assert_eq!(of_part("order:1", 2), "order:1/2");
        let long = "k".repeat(256);
        assert!(IdempotencyKey::parse(&of_part(&long, 999)).is_ok());
        assert_ne!(of_part(&long, 1), of_part(&long, 2));
    }
}
