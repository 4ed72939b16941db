//! Amazon's services as moto plays them: it checks each request's signature for real, and tells what was sent by mail.
//!
//! One user with keys, and one domain that may send (`shop.example`). It never throttles, and knows STS for signed calls only.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use postrider_workers::{
    config::HttpConfig,
    providers::{
        request::Request,
        sigv4::{self, Keys, SignedCall},
    },
    transport::provider::client::Client,
};

use crate::folder::Folder;
use crate::http::Endpoint;
use crate::process::{Process, Spec};
use crate::{ports, python};

const START_LIMIT: Duration = Duration::from_secs(60);
/// Calls that are let in without a check: the user, the keys, what the user may do, the domain.
const SETUP_CALLS: u32 = 4;
/// Its region.
pub const REGION: &str = "eu-central-1";
/// The domain that may send.
pub const DOMAIN: &str = "shop.example";

/// A running moto.
#[derive(Debug)]
pub struct Moto {
    _server: Process,
    _folder: Folder,
    port: u16,
    keys: Keys,
}

impl Moto {
    /// Starts one and makes the user and the domain.
    pub async fn start() -> Result<Self> {
        // Of several tests one is the first; the others find it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = Folder::new("moto")?;
        let port = ports::free()?;
        let spec = Spec::new("server", python::program("moto_server")?, folder.path())?
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", SETUP_CALLS.to_string());
        let server = Process::start_ready(spec, START_LIMIT, || ports::is_open(port))?;
        let nobody = Keys { access_key_id: "NOBODY".to_owned(), secret_access_key: "none".into(), session_token: None };
        let mut moto = Self { _server: server, _folder: folder, port, keys: nobody };
        moto.iam("Action=CreateUser&UserName=mail").await?;
        let made = moto.iam("Action=CreateAccessKey&UserName=mail").await?;
        let policy = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
        moto.iam(&format!("Action=PutUserPolicy&UserName=mail&PolicyName=all&PolicyDocument={policy}")).await?;
        let identity = format!("{{\"EmailIdentity\":\"{DOMAIN}\"}}");
        moto.call("ses", "/v2/email/identities", "application/json", &identity).await?;
        moto.keys = Keys {
            access_key_id: element(&made, "AccessKeyId")?,
            secret_access_key: element(&made, "SecretAccessKey")?.into(),
            session_token: None,
        };
        Ok(moto)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The keys of the user.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The raw messages that were sent: recipients and MIME, in order.
    pub fn sent(&self) -> Result<Vec<Sent>> {
        let endpoint = Endpoint { address: format!("127.0.0.1:{}", self.port), credentials: "guest:guest".to_owned() };
        let data: serde_json::Value = serde_json::from_str(&endpoint.expect("GET", "/moto-api/data.json", "")?)?;
        let list = data["ses"]["RawMessage"].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|one| {
                let recipients = one["destinations"].as_array().context("no destinations")?;
                Ok(Sent {
                    id: one["id"].as_str().context("no id")?.to_owned(),
                    recipients: recipients.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect(),
                    mime: one["raw_data"].as_str().context("no data")?.to_owned(),
                })
            })
            .collect()
    }

    async fn iam(&self, form: &str) -> Result<String> {
        let form = format!("{form}&Version=2010-05-08");
        self.call("iam", "/", "application/x-www-form-urlencoded", &form).await
    }

    async fn call(&self, service: &str, path: &str, content_type: &str, body: &str) -> Result<String> {
        let host = format!("127.0.0.1:{}", self.port);
        let call = SignedCall {
            region: REGION,
            service,
            method: "POST",
            path,
            host: &host,
            headers: &[("content-type", content_type)],
            body: body.as_bytes(),
        };
        let request = Request {
            path: path.to_owned(),
            headers: sigv4::sign(&call, &self.keys, Timestamp::now()),
            content_type: content_type.to_owned(),
            body: body.to_owned().into(),
        };
        let client = Client::new(&http(), &self.url().parse()?)?;
        match client.send(request).await {
            Ok(reply) if reply.status == 200 => Ok(String::from_utf8_lossy(&reply.body).into_owned()),
            other => bail!("{service} {path}: {other:?}"),
        }
    }
}

/// A message that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The id that the answer gave.
    pub id: String,
    /// Those that the request named; moto adds those that the headers name.
    pub recipients: Vec<String>,
    /// The message.
    pub mime: String,
}

/// How tests call an API: without a proxy, with a limit that a loaded machine keeps.
pub fn http() -> HttpConfig {
    HttpConfig {
        connect_timeout: Duration::from_secs(10),
        timeout: Duration::from_secs(60),
        answer_max: 1024 * 1024,
        connections: 8,
        proxy: None,
        ca_file: None,
    }
}

fn element(xml: &str, name: &str) -> Result<String> {
    let after = xml.split_once(&format!("<{name}>")).with_context(|| format!("no {name}"))?.1;
    Ok(after.split('<').next().unwrap_or_default().to_owned())
}
