//! A call to be made.

use std::fmt;

use bytes::Bytes;
use secrecy::SecretString;

/// A POST to be made. `Debug` shows neither headers nor body.
pub struct Request {
    /// Path and query, appended to the base address.
    pub path: String,
    /// Headers beside `Content-Type`. Values are secrets, because some of them are.
    pub headers: Vec<(&'static str, SecretString)>,
    /// The media type of the body.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A JSON document.
    pub fn json(path: &str, headers: Vec<(&'static str, SecretString)>, body: &serde_json::Value) -> Self {
        Self {
            path: path.to_owned(),
            headers,
            content_type: "application/json".to_owned(),
            // A document of strings, numbers and lists: serde_json has nothing to refuse in it.
            body: Bytes::from(serde_json::to_vec(body).unwrap_or_default()),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("path", &self.path).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}
