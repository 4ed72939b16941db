//! The shared HTTP client: sends a request once, and says whether a call that brought no answer may have been taken. Bounded in connecting, in the whole
//! call and in the size of the answer; follows no redirect, and uses no proxy of the environment.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::HeaderMap;
use jiff::Timestamp;
use postrider_providers::{reply::ProviderReply, request::Request};
use postrider_schemas::Lane;
use reqwest::{Certificate, Proxy, redirect::Policy, tls::TlsInfo};
use secrecy::ExposeSecret as _;
use url::Url;

use crate::{
    concurrency::priority_semaphore::{PriorityPermit, PrioritySemaphore},
    config::HttpConfig,
    policy::outcome::{Class, Stage},
    redact,
    telemetry::{registry::attribute, traces},
    transport::{certificate::Shown, local},
};

/// Idle connections are closed after this: shorter than the usual limit of load balancers, whose close would race with a request.
const IDLE: Duration = Duration::from_secs(45);

/// No answer came.
#[derive(Debug)]
pub enum Lost {
    /// The request certainly did not go out.
    Before {
        /// `Unavailable`, or `Config` where only a person can mend it.
        class: Class,
        /// Where.
        stage: Stage,
        /// What happened, without the address of the API.
        text: String,
    },
    /// It may have been taken.
    After(String),
}

impl Lost {
    fn text(&self) -> &str {
        match self {
            Self::Before { text, .. } | Self::After(text) => text,
        }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file with authorities cannot be used.
    #[error("ca_file: {0}")]
    CaFile(String),
    /// The proxy's address cannot be used.
    #[error("proxy: {0}")]
    Proxy(reqwest::Error),
    /// Anything else.
    #[error("{0}")]
    Build(reqwest::Error),
}

/// The client of one transport. Its connections are kept and shared.
pub struct Client {
    http: reqwest::Client,
    base_url: Url,
    places: PrioritySemaphore,
    places_max: usize,
    timeout: Duration,
    answer_max: usize,
    shown: Shown,
}

impl Client {
    /// Sets a client up; connects to nothing.
    pub fn new(config: &HttpConfig, base_url: &Url) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(config.connections)
            .tcp_nodelay(true)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .tls_info(true)
            .no_proxy();
        if let Some(proxy) = &config.proxy {
            builder = builder.proxy(Proxy::all(proxy.clone()).map_err(ClientError::Proxy)?);
        }
        if let Some(file) = &config.ca_file {
            let pem =
                std::fs::read(file).map_err(|error| ClientError::CaFile(format!("{}: {error}", file.display())))?;
            let list = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|list| !list.is_empty())
                .ok_or_else(|| ClientError::CaFile(format!("{}: holds no PEM certificate", file.display())))?;
            for certificate in list {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            http: builder.build().map_err(ClientError::Build)?,
            base_url: base_url.clone(),
            places: PrioritySemaphore::new(config.connections),
            places_max: config.connections,
            timeout: config.timeout,
            answer_max: config.answer_max,
            shown: Shown::default(),
        })
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        (self.base_url.host_str().unwrap_or_default(), self.base_url.port_or_known_default().unwrap_or_default())
    }

    /// Calls under way.
    pub fn calls(&self) -> usize {
        self.places.taken()
    }

    /// Most calls at once.
    pub fn calls_max(&self) -> usize {
        self.places_max
    }

    /// Whether whoever comes now waits for a call to end.
    pub fn is_saturated(&self) -> bool {
        self.places.is_full()
    }

    /// When the certificate ends that the API showed last.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.shown.end()
    }

    /// Waits in the line of this lane for a place among the calls under way. To be taken before it is said that bytes may go out.
    pub async fn acquire(&self, lane: Lane) -> Result<PriorityPermit<'_>, Lost> {
        let busy = || Lost::Before {
            class: Class::Throttled,
            stage: Stage::Connect,
            text: "no call to the provider came to its end in time".to_owned(),
        };
        match tokio::time::timeout(self.timeout, self.places.acquire(lane)).await {
            Ok(Some(place)) => Ok(place),
            Ok(None) | Err(_) => Err(busy()),
        }
    }

    /// Makes the call, once.
    pub async fn send(&self, request: Request) -> Result<ProviderReply, Lost> {
        let unusable = |text: String| Lost::Before { class: Class::Config, stage: Stage::Connect, text };
        let base = self.base_url.as_str();
        // An address that is the whole one is left as it was written.
        let url = match request.path.as_str() {
            "" => base.to_owned(),
            path => format!("{}{path}", base.trim_end_matches('/')),
        };
        let step = self.step(&request.path);
        let mut call = self.http.post(url).header(http::header::CONTENT_TYPE, request.content_type).body(request.body);
        for (name, value) in &request.headers {
            let mut value = http::HeaderValue::from_str(value.expose_secret()).map_err(|_| {
                unusable(format!("the header {name} holds what no header may: look at the credentials"))
            })?;
            value.set_sensitive(true);
            call = call.header(*name, value);
        }
        if let Some(context) = step.traceparent() {
            call = call.header("traceparent", context);
        }
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let lost = lost(&error);
                step.fail("lost", lost.text());
                return Err(lost);
            }
        };
        if let Some(certificate) = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate) {
            self.shown.note(certificate);
        }
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        step.set(attribute::HTTP_STATUS, i64::from(status));
        if status >= 400 {
            step.fail(status.to_string(), &status.to_string());
        }
        let (body, is_whole) = self.read(answer).await;
        let (body, is_whole) = unpacked(&headers, body, is_whole, self.answer_max);
        Ok(ProviderReply { status, headers, body, is_whole })
    }

    /// The call as the trail tells it. An address that is whole in the settings may hold a secret, and its path is not shown.
    fn step(&self, path: &str) -> traces::TraceStep {
        let step = traces::call("POST");
        if step.is_recorded() {
            let (host, port) = self.address();
            let shown = if path.is_empty() { "/REDACTED" } else { path.split('?').next().unwrap_or_default() };
            step.set(attribute::HTTP_METHOD, "POST");
            step.set(attribute::SERVER_ADDRESS, host.to_owned());
            step.set(attribute::SERVER_PORT, i64::from(port));
            step.set(attribute::URL_FULL, format!("{}://{host}:{port}{shown}", self.base_url.scheme()));
        }
        step
    }

    /// As much of the answer's body as is allowed. The status alone says enough for many answers, so that a body that breaks off is no
    /// reason to forget it.
    async fn read(&self, mut answer: reqwest::Response) -> (Bytes, bool) {
        let mut body = BytesMut::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= self.answer_max => body.extend_from_slice(&chunk),
                Ok(None) => return (body.freeze(), true),
                Ok(Some(_)) | Err(_) => return (body.freeze(), false),
            }
        }
    }
}

/// The body without the compression that nobody asked for, as far as it is allowed.
fn unpacked(headers: &HeaderMap, body: Bytes, is_whole: bool, max: usize) -> (Bytes, bool) {
    let encoding =
        headers.get(http::header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_packed = matches!(encoding.trim().to_ascii_lowercase().as_str(), "gzip" | "x-gzip")
        || body.starts_with(&[0x1f, 0x8b, 0x08]);
    if !is_packed {
        return (body, is_whole);
    }
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    let mut out = Vec::new();
    let mut reader = GzDecoder::new(&body[..]);
    let read = reader.by_ref().take(limit).read_to_end(&mut out).is_ok();
    // What is left over shows in one more byte.
    let is_read = read && reader.read(&mut [0]).is_ok_and(|more| more == 0);
    (out.into(), is_whole && is_read)
}

/// The `Host` that the client sends for this address: the port stands in it where it is not the scheme's own.
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What an error of the client means for the message.
fn lost(error: &reqwest::Error) -> Lost {
    let text = innermost(error);
    if error.is_builder() {
        return Lost::Before { class: Class::Config, stage: Stage::Connect, text };
    }
    if !error.is_connect() {
        return Lost::After(text);
    }
    if sources(error).any(|cause| cause.downcast_ref::<io::Error>().is_some_and(local::is_local)) || local::is_starved()
    {
        return Lost::Before { class: Class::Local, stage: Stage::Connect, text };
    }
    // A certificate that does not fit stays so until a person comes.
    let certificate = text.contains("certificate");
    let (class, stage) = if certificate { (Class::Config, Stage::Tls) } else { (Class::Unavailable, Stage::Connect) };
    Lost::Before { class, stage, text }
}

/// The last cause says what happened; the ones around it name the address.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer within the limit".to_owned();
    }
    sources(error).last().map(|cause| redact::clean(&cause.to_string()).into_owned()).unwrap_or_default()
}

/// An error and what caused it, from the outside in.
fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| cause.source())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn a_packed_answer_is_unpacked_within_the_limit() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"{\"id\":\"0123456789\"}").unwrap();
        let packed = Bytes::from(encoder.finish().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_ENCODING, "gzip".parse().unwrap());
        let read = |body: &Bytes, max| unpacked(&headers, body.clone(), true, max);
        assert_eq!(read(&packed, 100), (Bytes::from_static(b"{\"id\":\"0123456789\"}"), true));
        assert_eq!(read(&packed, 5), (Bytes::from_static(b"{\"id\""), false));
        assert!(!read(&packed.slice(..12), 100).1, "cut");
        let plain = Bytes::from_static(b"{}");
        assert_eq!(unpacked(&HeaderMap::new(), plain.clone(), true, 100), (plain, true));
    }
}
