//! AWS Signature Version 4 for requests whose whole body is at hand: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.
//! Pure: the time is an argument. Queries are not signed here, because no call of ours has one.

use std::fmt::Write as _;

use hmac::{Hmac, Mac as _};
use jiff::{Timestamp, tz::TimeZone};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};

/// Keys of an AWS account. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The access key id, which is no secret.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// The token that belongs to temporary keys.
    pub session_token: Option<SecretString>,
}

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub struct SignedCall<'a> {
    /// For example `eu-central-1`.
    pub region: &'a str,
    /// For example `ses`.
    pub service: &'a str,
    /// For example `POST`.
    pub method: &'a str,
    /// The path, made of characters that need no escaping.
    pub path: &'a str,
    /// `Host` as the client will send it: with the port where it is not the scheme's own.
    pub host: &'a str,
    /// Further headers: names in lower case, values without blanks around them.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

/// The headers to add: `Authorization`, `X-Amz-Date`, and `X-Amz-Security-Token` where the keys have one.
pub fn sign(call: &SignedCall<'_>, keys: &Keys, now: Timestamp) -> Vec<(&'static str, SecretString)> {
    let time = now.to_zoned(TimeZone::UTC);
    let (date, time) = (time.strftime("%Y%m%d").to_string(), time.strftime("%Y%m%dT%H%M%SZ").to_string());
    let token = keys.session_token.as_ref().map(ExposeSecret::expose_secret);

    let mut signed: Vec<(&str, &str)> = call.headers.to_vec();
    signed.extend([("host", call.host), ("x-amz-date", &time)]);
    signed.extend(token.map(|token| ("x-amz-security-token", token)));
    signed.sort_unstable();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");

    let mut canonical = format!("{}\n{}\n\n", call.method, call.path);
    for (name, value) in &signed {
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{names}\n{}", hex(&Sha256::digest(call.body)));

    let scope = format!("{date}/{}/{}/aws4_request", call.region, call.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let first = format!("AWS4{}", keys.secret_access_key.expose_secret());
    let key = [date.as_str(), call.region, call.service, "aws4_request"]
        .into_iter()
        .fold(first.into_bytes(), |key, step| hmac_sha256(&key, step.as_bytes()));
    let signature = hex(&hmac_sha256(&key, to_sign.as_bytes()));

    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        keys.access_key_id
    );
    let mut headers = vec![("authorization", authorization.into()), ("x-amz-date", time.into())];
    headers.extend(token.map(|token| ("x-amz-security-token", token.to_owned().into())));
    headers
}

/// HMAC with SHA-256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    // A key of any length will do: the error is never made.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys, time and scope of AWS's published test suite.
    fn keys(session_token: Option<&str>) -> Keys {
        Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: session_token.map(Into::into),
        }
    }

    fn call<'a>(method: &'a str, headers: &'a [(&'a str, &'a str)], body: &'a [u8]) -> SignedCall<'a> {
        SignedCall {
            region: "us-east-1",
            service: "service",
            method,
            path: "/",
            host: "example.amazonaws.com",
            headers,
            body,
        }
    }

    #[track_caller]
    fn check(call: &SignedCall<'_>, keys: &Keys, names: &str, signature: &str) {
        let headers = sign(call, keys, "2015-08-30T12:36:00Z".parse().unwrap());
        assert_eq!(
            headers[0].1.expose_secret(),
            format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/{}/aws4_request, SignedHeaders={names}, Signature={signature}",
                call.service
            )
        );
        assert_eq!(headers[1].1.expose_secret(), "20150830T123600Z");
    }

    #[test]
    fn the_published_vectors_come_out() {
        let vanilla = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        check(&call("GET", &[], b""), &keys(None), "host;x-amz-date", vanilla);
        let vanilla = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b";
        check(&call("POST", &[], b""), &keys(None), "host;x-amz-date", vanilla);
        let form = "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a";
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        check(&call("POST", &headers, b"Param1=value1"), &keys(None), "content-type;host;x-amz-date", form);
    }

    #[test]
    fn a_token_is_signed_and_sent() {
        let signed = "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8";
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        check(&call("GET", &[], b""), &keys(Some(token)), "host;x-amz-date;x-amz-security-token", signed);
        let headers = sign(&call("GET", &[], b""), &keys(Some(token)), Timestamp::UNIX_EPOCH);
        assert_eq!((headers[2].0, headers[2].1.expose_secret()), ("x-amz-security-token", token));
    }

    #[test]
    fn the_body_is_signed_and_no_secret_is_shown() {
        let at = Timestamp::UNIX_EPOCH;
        let one = sign(&call("POST", &[], b"a"), &keys(None), at);
        let other = sign(&call("POST", &[], b"b"), &keys(None), at);
        assert_ne!(one[0].1.expose_secret(), other[0].1.expose_secret());
        let shown = format!("{:?}", keys(Some("the-token")));
        assert!(!shown.contains("wJalr") && !shown.contains("the-token"), "{shown}");
    }
}
