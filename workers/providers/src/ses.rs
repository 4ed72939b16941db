//! Amazon SES, API v2, `SendEmail`: <https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html>.
//!
//! The message goes as MIME with its recipients beside it, so that a part of a job shows the same headers as the whole. SES writes a `Message-ID` of
//! its own over ours; the job id comes back as a message tag. Calls are not shared: the API does that for templates of its own only.

use std::path::PathBuf;

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::job::RecipientField;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    description::{Api, Call, Credentials, Description, MIB, Notes, Setting, SettingError, SettingForm, Settings},
    encoding::{base64, put},
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    sigv4::{self, Keys, SignedCall},
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "ses",
    name: "Amazon SES",
    // Made of the region.
    base_url: None,
    settings: &[
        Setting::text("region", "For example `eu-central-1`."),
        Setting::text("access_key_id", "The access key id."),
        Setting::secret("secret_access_key", "The secret access key."),
        Setting::optional("session_token", SettingForm::Secret, "The token of temporary keys."),
        Setting::optional("role_arn", SettingForm::Text, "The role to assume, in the place of keys."),
        Setting::optional("token_file", SettingForm::Path, "The file with the token that the role is assumed by."),
        Setting::optional("sts_url", SettingForm::Url, "Where STS is; the region's own where absent."),
        Setting::optional("configuration_set", SettingForm::Text, "The configuration set of every message."),
        Setting::optional(
            "tracking_configuration_set",
            SettingForm::Text,
            "The configuration set of messages that ask for tracking.",
        ),
    ],
    // Open and click tracking belong to the configuration set; 40 MB as MIME.
    capabilities: Capabilities { opens: false, clicks: false, bytes_max: 28 * MIB, raw: true, ..Capabilities::ALL },
    batching: None,
    notes: Notes { needs: " or `role_arn`, `token_file`", tracking: "tracking_configuration_set", repeats: "" },
};

/// An account at Amazon SES.
#[derive(Debug, Clone)]
pub struct SesAccount {
    /// For example `eu-central-1`.
    pub region: String,
    /// Where the keys come from.
    pub credentials: SesCredentials,
    /// The configuration set of every message.
    pub configuration_set: Option<String>,
    /// The one of messages that ask for tracking.
    pub tracking_configuration_set: Option<String>,
}

/// Where the keys come from.
#[derive(Debug, Clone)]
pub enum SesCredentials {
    /// From the configuration.
    Static {
        /// The access key id.
        access_key_id: String,
        /// The secret access key.
        secret_access_key: SecretString,
        /// The token of temporary keys.
        session_token: Option<SecretString>,
    },
    /// From STS, for the token in a file (Kubernetes service accounts).
    WebIdentity {
        /// The role to assume.
        role_arn: String,
        /// The file that holds the token; read again for each assumption.
        token_file: PathBuf,
        /// Where STS is.
        sts_url: Url,
    },
}

impl SesAccount {
    /// Makes the account of its settings.
    pub fn read(settings: &mut Settings) -> Result<Self, SettingError> {
        let region = settings.text("region")?;
        let by_role = settings.has("role_arn") || settings.has("token_file");
        if by_role && settings.has("access_key_id") {
            return Err(SettingError::wrong("role_arn", "stands beside `access_key_id`: give one of the two"));
        }
        let credentials = if by_role {
            let own = || Url::parse(&format!("https://sts.{region}.amazonaws.com")).ok();
            let sts_url = settings.some_url("sts_url").or_else(own);
            SesCredentials::WebIdentity {
                role_arn: settings.text("role_arn")?,
                token_file: settings.some_path("token_file").ok_or_else(|| SettingError::missing("token_file"))?,
                sts_url: sts_url
                    .ok_or_else(|| SettingError::wrong("region", "expected a region such as eu-central-1"))?,
            }
        } else {
            SesCredentials::Static {
                secret_access_key: settings.secret("secret_access_key")?,
                access_key_id: settings.text("access_key_id")?,
                session_token: settings.some_secret("session_token"),
            }
        };
        Ok(Self {
            region,
            credentials,
            configuration_set: settings.some_text("configuration_set"),
            tracking_configuration_set: settings.some_text("tracking_configuration_set"),
        })
    }
}

impl Credentials for SesAccount {
    fn secrets(&self) -> Vec<&SecretString> {
        match &self.credentials {
            SesCredentials::Static { secret_access_key, session_token, .. } => {
                std::iter::once(secret_access_key).chain(session_token).collect()
            }
            SesCredentials::WebIdentity { .. } => Vec::new(),
        }
    }
}

impl Api for SesAccount {
    fn request(&self, message: &Message<'_>, call: Call<'_>) -> Result<Request, Unsupported> {
        let keys = call.keys.ok_or_else(|| Unsupported::Value("anything without keys".to_owned()))?;
        request(self, keys, call.host, message, call.now)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn base_url(&self) -> Option<String> {
        Some(format!("https://email.{}.amazonaws.com", self.region))
    }

    fn capabilities(&self, table: Capabilities) -> Capabilities {
        let tracks = self.tracking_configuration_set.is_some();
        Capabilities { opens: table.opens || tracks, clicks: table.clicks || tracks, ..table }
    }
}

const PATH: &str = "/v2/email/outbound-emails";
/// Longest name or value of a message tag.
const TAG_MAX: usize = 256;
/// The name under which events give the job id back.
const JOB_ID: &str = "postrider_job_id";

/// One message, signed for `host` with `keys` at the time `now`.
pub fn request(
    account: &SesAccount,
    keys: &Keys,
    host: &str,
    outgoing: &Message<'_>,
    now: Timestamp,
) -> Result<Request, Unsupported> {
    let mut request = Request::json(PATH, Vec::new(), &body(account, outgoing)?);
    request.headers = sigv4::sign(
        &SignedCall {
            region: &account.region,
            service: "ses",
            method: "POST",
            path: PATH,
            host,
            headers: &[("content-type", &request.content_type)],
            body: &request.body,
        },
        keys,
        now,
    );
    Ok(request)
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let body = reply.json().unwrap_or_default();
    let id = body["MessageId"].as_str().filter(|id| !id.is_empty());
    if let (200..=299, Some(id), true) = (reply.status, id, reply.is_whole) {
        return ReplyVerdict::Taken(id.to_owned());
    }
    let (kind, text) = reason(reply, &body);
    let refused = |class| ReplyVerdict::refused(class, text.as_str()).after(reply.retry_after(now));
    match kind.as_str() {
        _ if reply.status < 400 => reply.by_status(&text, now),
        // With HTTP 400: the rate of a second, or the quota of a day, which only the words tell apart.
        "Throttling" | "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded"
            if mentions(&text, "quota") =>
        {
            refused(Class::Quota)
        }
        "Throttling" | "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded" => {
            refused(Class::Throttled)
        }
        "LimitExceededException" => refused(Class::Quota),
        // Until a person mends it, every message gets the same answer: the account, a configuration set that is missing, the keys.
        "SendingPausedException"
        | "AccountSendingPausedException"
        | "AccountSuspendedException"
        | "NotFoundException"
        | "ConfigurationSetDoesNotExist"
        | "ConfigurationSetDoesNotExistException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired"
        | "AccessDenied"
        | "AccessDeniedException" => refused(Class::Config),
        // An identity of this account that is not verified, not a content that is refused.
        "MessageRejected" if mentions(&text, "not verified") => refused(Class::Sender),
        "MailFromDomainNotVerified" | "MailFromDomainNotVerifiedException" => refused(Class::Sender),
        // Keys that ended on the way are among them: the next call has fresh ones.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ConcurrentModificationException" => refused(Class::Transient),
        _ => reply.by_status(&text, now),
    }
}

/// True where the answer says that the keys are no longer good, so that others must be fetched.
pub fn keys_ended(reply: &ProviderReply) -> bool {
    let (kind, _) = reason(reply, &reply.json().unwrap_or_default());
    matches!(kind.as_str(), "ExpiredToken" | "ExpiredTokenException")
}

fn body(account: &SesAccount, outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    for (name, _) in outgoing.headers.clone() {
        // SES takes such headers for orders to itself.
        if name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("x-ses-")) {
            return Err(Unsupported::Header(name));
        }
    }
    let composed = outgoing.mime.mime().map_err(Unsupported::Compose)?;
    if composed.needs_smtputf8 || outgoing.has_international_envelope() {
        return Err(Unsupported::Value("an address with other letters than ASCII before the @".to_owned()));
    }
    let mut destination = Map::new();
    let all = outgoing.job.recipients();
    let fields = [
        ("ToAddresses", RecipientField::To),
        ("CcAddresses", RecipientField::Cc),
        ("BccAddresses", RecipientField::Bcc),
    ];
    for (name, field) in fields {
        let list: Vec<String> = outgoing
            .indices
            .iter()
            .filter(|index| all[**index].field == field)
            .map(|index| all[*index].address.to_string())
            .collect();
        if !list.is_empty() {
            put(&mut destination, name, list);
        }
    }
    let mut body = Map::new();
    if outgoing.job.raw().is_some() {
        let sender = outgoing.job.sender().ok_or_else(|| Unsupported::Value("an empty envelope sender".to_owned()))?;
        put(&mut body, "FromEmailAddress", sender.to_string());
    }
    put(&mut body, "Destination", destination);
    put(&mut body, "Content", json!({ "Raw": { "Data": base64(&composed.message) } }));
    put(&mut body, "EmailTags", tags(outgoing)?);
    let tracking_set = account.tracking_configuration_set.as_ref().filter(|_| outgoing.job.tracking().any());
    if let Some(set) = tracking_set.or(account.configuration_set.as_ref()) {
        put(&mut body, "ConfigurationSetName", set.as_str());
    }
    Ok(Value::Object(body))
}

/// Message tags: the job id, tags by number (a name may stand once only), and metadata by its keys.
fn tags(outgoing: &Message<'_>) -> Result<Vec<Value>, Unsupported> {
    let job = outgoing.job;
    let mut list = vec![json!({ "Name": JOB_ID, "Value": job.id().to_string() })];
    for (n, tag) in job.tags().iter().enumerate() {
        if !is_legal(tag) {
            return Err(Unsupported::Value(
                "a tag of other characters than A-Z, a-z, 0-9, underscore and hyphen".to_owned(),
            ));
        }
        list.push(json!({ "Name": format!("tag_{}", n + 1), "Value": tag }));
    }
    for (key, value) in job.metadata() {
        if !is_legal(key) || !is_legal(value) {
            return Err(Unsupported::Value(
                "metadata of other characters than A-Z, a-z, 0-9, underscore and hyphen".to_owned(),
            ));
        }
        if list.iter().any(|tag| tag["Name"] == key.as_str()) {
            return Err(Unsupported::Value("metadata by the name of a tag".to_owned()));
        }
        list.push(json!({ "Name": key, "Value": value }));
    }
    Ok(list)
}

/// What `MessageTag` takes as a name or a value.
fn is_legal(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !text.is_empty() && text.len() <= TAG_MAX && text.bytes().all(plain)
}

/// The name of the error, which stands in a header or in the body with different things around it, and the name with the message.
fn reason(reply: &ProviderReply, body: &Value) -> (String, String) {
    let kind = reply.header("x-amzn-errortype").or_else(|| body["__type"].as_str()).or_else(|| body["code"].as_str());
    let kind = kind.unwrap_or_default();
    let kind = kind.split(':').next().unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default().to_owned();
    let message = body["message"].as_str().or_else(|| body["Message"].as_str());
    let text = match (kind.as_str(), message) {
        ("", Some(message)) => message.to_owned(),
        ("", None) => reply.excerpt(),
        (kind, Some(message)) => format!("{kind}: {message}"),
        (kind, None) => kind.to_owned(),
    };
    (kind, text)
}

fn mentions(text: &str, lower_case: &str) -> bool {
    text.to_ascii_lowercase().contains(lower_case)
}

#[cfg(test)]
#[path = "ses_tests.rs"]
mod tests;
