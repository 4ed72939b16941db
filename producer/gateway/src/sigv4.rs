//! Verifies requests that are signed in the AWS form (Signature Version 4). Pure.

use hmac::{Hmac, Mac as _};
use http::HeaderMap;
use jiff::{Timestamp, fmt::strtime};
use sha2::{Digest as _, Sha256};

use crate::{idempotency::hex, keys::is_equal};

/// How far the clocks may be apart, in seconds.
const WINDOW: i64 = 5 * 60;

/// What an `Authorization` header says.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    /// The access key id.
    pub key_id: String,
    /// `date/region/service/aws4_request`
    scope: String,
    headers: Vec<String>,
    signature: String,
}

/// Reads the header; nothing where it is of another form.
pub fn read(authorization: &str) -> Option<Signed> {
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256")?;
    let field = |name: &str| rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    let (key_id, scope) = field("Credential")?.split_once('/')?;
    let headers = field("SignedHeaders")?.split(';').map(str::to_owned).collect();
    Some(Signed {
        key_id: key_id.to_owned(),
        scope: scope.to_owned(),
        headers,
        signature: field("Signature")?.to_owned(),
    })
}

/// A request as it is signed.
pub struct SignedRequest<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, as it came.
    pub path: &'a str,
    /// What stands behind the question mark, as it came.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a [u8],
}

impl Signed {
    /// Whether the request was signed with this secret, just now.
    pub fn is_valid(&self, request: &SignedRequest<'_>, secret: &str, now: Timestamp) -> bool {
        let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        let Some(time) = text("x-amz-date") else { return false };
        let parsed = strtime::parse("%Y%m%dT%H%M%S%z", format!("{}+0000", time.trim_end_matches('Z')));
        let Ok(signed_at) = parsed.and_then(|time| time.to_timestamp()) else { return false };
        if (signed_at.as_second() - now.as_second()).abs() > WINDOW {
            return false;
        }
        let hash = hex(&Sha256::digest(request.body));
        let claimed = text("x-amz-content-sha256").filter(|claimed| *claimed != "UNSIGNED-PAYLOAD");
        let signs = |name: &str| self.headers.iter().any(|header| header == name);
        let mut scope = self.scope.split('/');
        let (date, region, service) = (scope.next(), scope.next(), scope.next());
        let is_whole = scope.next() == Some("aws4_request") && scope.next().is_none();
        let (Some(date), Some(region), Some("ses" | "email"), true) = (date, region, service, is_whole) else {
            return false;
        };
        // Without the host and the date a signature could be carried to another place and time.
        if claimed.is_some_and(|claimed| claimed != hash)
            || !time.starts_with(date)
            || !signs("host")
            || !signs("x-amz-date")
        {
            return false;
        }
        let Some(canonical) = self.canonical(request, &hash) else { return false };
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{time}\n{}\n{}", self.scope, hex(&Sha256::digest(canonical.as_bytes())));
        let service = service.unwrap_or_default();
        let key = [date, region, service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
        is_equal(hex(&hmac(&key, to_sign.as_bytes())).as_bytes(), self.signature.as_bytes())
    }

    fn canonical(&self, request: &SignedRequest<'_>, hash: &str) -> Option<String> {
        let mut query: Vec<&str> = request.query.split('&').filter(|pair| !pair.is_empty()).collect();
        query.sort_unstable();
        let mut headers = String::new();
        for name in &self.headers {
            let values: Option<Vec<String>> = request
                .headers
                .get_all(name.as_str())
                .iter()
                .map(|value| Some(value.to_str().ok()?.split_whitespace().collect::<Vec<_>>().join(" ")))
                .collect();
            let values = values.filter(|values| !values.is_empty())?;
            headers = headers + name + ":" + &values.join(",") + "\n";
        }
        let (method, path, signed) = (request.method, request.path, self.headers.join(";"));
        Some(format!("{method}\n{path}\n{}\n{headers}\n{signed}\n{hash}", query.join("&")))
    }
}

/// The secret access key of an API key.
pub fn secret_of(signing_secret: &str, key_id: &str) -> String {
    hex(&hmac(signing_secret.as_bytes(), key_id.as_bytes()))
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by botocore 1.44.8.
    const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=k1/20261201/eu-west-1/ses/aws4_request, \
         SignedHeaders=content-type;host;x-amz-date;x-two, \
         Signature=d8e51587c0cf6830a359b87c04bf5bc2bebca74f99b15e011c567a5071f7fc71";

    fn check(change: impl FnOnce(&mut HeaderMap, &mut SignedRequest<'_>), now: &str, authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "127.0.0.1:8000"),
            ("content-type", "application/json"),
            ("x-amz-date", "20261201T100000Z"),
            ("x-two", " a   b "),
            ("user-agent", "not signed"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let (path, body) = ("/v2/email/outbound-emails", b"{\"a\": 1}");
        let empty = HeaderMap::new();
        let mut request = SignedRequest { method: "POST", path, query: "", headers: &empty, body };
        change(&mut headers, &mut request);
        let request = SignedRequest { headers: &headers, ..request };
        read(authorization).unwrap().is_valid(&request, "secret", now.parse().unwrap())
    }

    #[test]
    fn what_the_vendors_own_client_signs_is_valid_and_any_change_is_not() {
        let now = "2026-12-01T10:04:00Z";
        assert!(check(|_, _| (), now, AUTHORIZATION));
        assert!(!check(|_, request| request.body = b"{\"a\": 2}", now, AUTHORIZATION));
        assert!(!check(|_, request| request.path = "/v2/email/other", now, AUTHORIZATION));
        assert!(!check(|_, request| request.query = "a=b", now, AUTHORIZATION));
        assert!(!check(|headers, _| drop(headers.insert("host", "other".parse().unwrap())), now, AUTHORIZATION));
        assert!(!check(|headers, _| drop(headers.remove("x-two")), now, AUTHORIZATION));
        assert!(!check(|_, _| (), "2026-12-01T10:06:00Z", AUTHORIZATION), "too old");
        assert!(!check(|_, _| (), now, &AUTHORIZATION.replace("eu-west-1", "us-east-1")));
        assert!(!check(|_, _| (), now, &AUTHORIZATION.replace("Signature=d", "Signature=e")));
        assert!(!check(|_, _| (), now, &AUTHORIZATION.replace("content-type;host;", "content-type;")));
        let wrong_sum = |headers: &mut HeaderMap, _: &mut SignedRequest<'_>| {
            headers.insert("x-amz-content-sha256", "00".parse().unwrap());
        };
        assert!(!check(wrong_sum, now, AUTHORIZATION));
    }

    #[test]
    fn other_headers_are_no_signatures() {
        for text in ["Bearer x", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=k, SignedHeaders=host, Signature=0"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
