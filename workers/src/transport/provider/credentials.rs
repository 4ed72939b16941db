//! Where the keys for Amazon SES come from: the configuration, or STS in exchange for the token of a Kubernetes service account
//! (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>). Keys that end are kept until shortly before, and
//! fetched by one caller while the others wait for it. The file with the token is read each time: it is replaced long before it ends.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use postrider_providers::{reply::ProviderReply, request::Request, ses::SesCredentials, sigv4::Keys};
use secrecy::SecretString;
use tokio::sync::Mutex;

use super::client::{Client, ClientError, Lost};
use crate::{
    config::HttpConfig,
    policy::outcome::{Answer, Class, Refusal, Stage},
    redact,
};

/// Keys are replaced so long before they end: a call that is signed now must still be good when it arrives.
const EARLY: Duration = Duration::from_mins(5);
/// Shows in the account's own log who took the role.
const SESSION: &str = "postrider";

/// The source of keys of one account.
pub struct Credentials(CredentialSource);

enum CredentialSource {
    Static(Keys),
    WebIdentity(Box<WebIdentity>),
}

struct WebIdentity {
    role_arn: String,
    token_file: PathBuf,
    sts: Client,
    state: Mutex<CredentialState>,
}

/// What was learned so far.
#[derive(Default)]
struct CredentialState {
    kept: Option<CachedKeys>,
    /// The last failure, and when it was known.
    failed: Option<(Instant, Refusal)>,
}

/// Keys and their end.
struct CachedKeys {
    keys: Keys,
    until: Timestamp,
}

impl Credentials {
    /// Sets the source up; asks nobody yet.
    pub fn new(credentials: &SesCredentials, http: &HttpConfig) -> Result<Self, ClientError> {
        Ok(Self(match credentials {
            SesCredentials::Static { access_key_id, secret_access_key, session_token } => {
                CredentialSource::Static(Keys {
                    access_key_id: access_key_id.clone(),
                    secret_access_key: secret_access_key.clone(),
                    session_token: session_token.clone(),
                })
            }
            SesCredentials::WebIdentity { role_arn, token_file, sts_url } => {
                CredentialSource::WebIdentity(Box::new(WebIdentity {
                    role_arn: role_arn.clone(),
                    token_file: token_file.clone(),
                    sts: Client::new(http, sts_url)?,
                    state: Mutex::default(),
                }))
            }
        }))
    }

    /// Keys that are good now. Where they cannot be had, nothing was sent.
    pub async fn keys(&self) -> Result<Keys, Refusal> {
        let source = match &self.0 {
            CredentialSource::Static(keys) => return Ok(keys.clone()),
            CredentialSource::WebIdentity(source) => source,
        };
        let asked = Instant::now();
        // Held while the keys are fetched, so that one caller asks.
        let mut state = source.state.lock().await;
        let now = Timestamp::now();
        if let Some(kept) = state.kept.as_ref().filter(|kept| kept.until.checked_sub(EARLY).is_ok_and(|end| now < end))
        {
            return Ok(kept.keys.clone());
        }
        // A failure while this caller waited is its failure too: else each of many would wait for one of its own.
        let shared = state.failed.as_ref().filter(|(at, _)| *at >= asked).map(|(_, refusal)| refusal.clone());
        let refusal = match shared {
            Some(refusal) => refusal,
            None => match source.fetch().await {
                Ok(fresh) => return Ok(state.kept.insert(fresh).keys.clone()),
                Err(refusal) => state.failed.insert((Instant::now(), refusal)).1.clone(),
            },
        };
        // The old ones may still be good for a little while.
        match state.kept.as_ref().filter(|kept| Timestamp::now() < kept.until) {
            Some(kept) => Ok(kept.keys.clone()),
            None => Err(refusal),
        }
    }

    /// Forgets keys that were refused as ended, unless others have taken their place meanwhile.
    pub async fn forget(&self, ended: &Keys) {
        if let CredentialSource::WebIdentity(source) = &self.0 {
            source.state.lock().await.kept.take_if(|kept| kept.keys.access_key_id == ended.access_key_id);
        }
    }
}

impl WebIdentity {
    async fn fetch(&self) -> Result<CachedKeys, Refusal> {
        let token = tokio::fs::read_to_string(&self.token_file).await.map_err(|error| {
            refusal(Class::Config, &format!("the token file {} cannot be read: {error}", self.token_file.display()))
        })?;
        redact::learn([&SecretString::from(token.trim())]);
        match self.sts.send(request(&self.role_arn, token.trim())).await {
            Ok(reply) => read(&reply),
            Err(Lost::Before { class, text, .. }) => Err(refusal(class, &format!("STS: {text}"))),
            // Keys that nobody got; no mail is concerned.
            Err(Lost::After(text)) => Err(refusal(Class::Transient, &format!("STS: {text}"))),
        }
    }
}

/// The call of STS. It needs no signature: the token is the proof.
fn request(role_arn: &str, token: &str) -> Request {
    let field = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let body = format!(
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={}&RoleSessionName={SESSION}&WebIdentityToken={}",
        field(role_arn),
        field(token)
    );
    Request {
        path: "/".to_owned(),
        headers: Vec::new(),
        content_type: "application/x-www-form-urlencoded; charset=utf-8".to_owned(),
        body: body.into(),
    }
}

/// What STS answers. Its XML holds plain words between these tags, so that nothing more is needed to read it.
fn read(reply: &ProviderReply) -> Result<CachedKeys, Refusal> {
    let text = String::from_utf8_lossy(&reply.body);
    if reply.status == 200 {
        let until = element(&text, "Expiration").and_then(|time| time.parse().ok());
        let [id, secret, token] = ["AccessKeyId", "SecretAccessKey", "SessionToken"].map(|name| element(&text, name));
        let (Some(id), Some(secret), Some(token), Some(until)) = (id, secret, token, until) else {
            return Err(refusal(Class::Transient, "STS: an answer without keys"));
        };
        let keys = Keys {
            access_key_id: id.to_owned(),
            secret_access_key: SecretString::from(secret.to_owned()),
            session_token: Some(SecretString::from(token.to_owned())),
        };
        redact::learn(std::iter::once(&keys.secret_access_key).chain(&keys.session_token));
        return Ok(CachedKeys { keys, until });
    }
    let kind = element(&text, "Code").unwrap_or_default();
    let class = match (kind, reply.status) {
        ("Throttling" | "ThrottlingException" | "IDPCommunicationError", _) | (_, 429 | 500..) => Class::Transient,
        _ => Class::Config,
    };
    // The code alone: the message may quote the token.
    Err(refusal(class, &format!("STS: {} {kind}", reply.status)))
}

fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

fn refusal(class: Class, text: &str) -> Refusal {
    Refusal { class, answer: Answer::local(Stage::Connect, text), retry_after: None }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn reply(status: u16, body: &str) -> ProviderReply {
        ProviderReply { status, body: body.to_owned().into(), is_whole: true, ..ProviderReply::default() }
    }

    const GIVEN: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
        <SessionToken>the-token=</SessionToken><SecretAccessKey>the-secret</SecretAccessKey>\
        <Expiration>2026-11-23T11:00:00Z</Expiration><AccessKeyId>ASIA1</AccessKeyId>\
        </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";

    #[test]
    fn the_answer_holds_keys_and_their_end() {
        let kept = read(&reply(200, GIVEN)).ok().unwrap();
        assert_eq!(kept.keys.access_key_id, "ASIA1");
        assert_eq!(kept.keys.secret_access_key.expose_secret(), "the-secret");
        assert_eq!(kept.keys.session_token.unwrap().expose_secret(), "the-token=");
        assert_eq!(kept.until, "2026-11-23T11:00:00Z".parse().unwrap());
    }

    #[track_caller]
    fn check(status: u16, body: &str, class: Class, text: &str) {
        let refusal = read(&reply(status, body)).err().unwrap();
        assert_eq!((refusal.class, refusal.answer.text.as_str()), (class, text));
    }

    #[test]
    fn an_answer_without_keys_has_a_class_and_shows_no_token() {
        let error = |code: &str| {
            format!("<ErrorResponse><Error><Code>{code}</Code><Message>eyJ0b2</Message></Error></ErrorResponse>")
        };
        check(400, &error("ExpiredTokenException"), Class::Config, "STS: 400 ExpiredTokenException");
        check(400, &error("IDPCommunicationError"), Class::Transient, "STS: 400 IDPCommunicationError");
        check(400, &error("Throttling"), Class::Transient, "STS: 400 Throttling");
        check(403, &error("AccessDenied"), Class::Config, "STS: 403 AccessDenied");
        check(503, "", Class::Transient, "STS: 503");
        check(200, "<html>", Class::Transient, "STS: an answer without keys");
        check(200, &GIVEN[..200], Class::Transient, "STS: an answer without keys");
    }

    #[test]
    fn the_call_escapes_what_it_carries() {
        let request = request("arn:aws:iam::1:role/mail", "a.b+c/d=");
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        assert!(body.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fmail"), "{body}");
        assert!(body.ends_with("WebIdentityToken=a%2Eb%2Bc%2Fd%3D"), "{body}");
        assert!(!format!("{request:?}").contains("a%2Eb"));
    }
}
