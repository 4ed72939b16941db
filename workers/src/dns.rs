//! What DNS says of a recipient's domain, with an answer that is kept for a while. DNS never stops mail: an answer that does not come in time is none,
//! and while the resolver is silent nobody waits for it. Decides nothing about groups or recipients.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::{info, warn};

use crate::config::DnsConfig;

/// Domains that are remembered.
const KEPT_MAX: usize = 50_000;
/// How long a positive answer is kept at least and at most, whatever its time to live.
const KEPT: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(6));
/// How long it is remembered that a domain does not exist or takes no mail.
const KEPT_REFUSAL: Duration = Duration::from_mins(5);
/// How long nobody asks again about a domain whose answer did not come.
const KEPT_SILENCE: Duration = Duration::from_secs(30);
/// So many answers in a row that did not come say that the resolver is silent...
const SILENT_AFTER: u32 = 5;
/// ...and nobody waits for it, but for one question each so often.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// Questions under way at once.
const ASKED_MAX: usize = 256;

/// What is known of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Names of its mail exchangers in lower case, the preferred one first; the domain itself where it names none.
    Exchangers(Arc<[String]>),
    /// There is no such domain.
    NoSuchDomain,
    /// It says that it takes no mail (RFC 7505).
    TakesNoMail,
    /// No answer, or one that says nothing.
    Unknown,
}

/// A resolver that remembers.
pub struct Dns {
    resolver: Option<TokioResolver>,
    patience: Duration,
    known: Mutex<Known>,
    questions: Arc<Semaphore>,
}

#[derive(Default)]
struct Known {
    answers: HashMap<String, (Answer, Instant)>,
    failures: u32,
    silent_until: Option<Instant>,
}

/// Why the resolver cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("setting `dns.servers`: {0}")]
pub struct SetupError(NetError);

impl Dns {
    /// Asks nobody yet, and never does where nothing wants it.
    pub fn new(config: &DnsConfig) -> Result<Arc<Self>, SetupError> {
        let wanted = config.groups || config.check;
        let resolver = wanted.then(|| resolver(config)).transpose().map_err(SetupError)?;
        let questions = Arc::new(Semaphore::new(ASKED_MAX));
        Ok(Arc::new(Self { resolver, patience: config.patience, known: Mutex::default(), questions }))
    }

    /// What is known of a domain, after the configured patience at most. An answer that comes later is there for the next one who asks.
    pub async fn look(self: &Arc<Self>, domain: &str) -> Answer {
        let Some(resolver) = &self.resolver else { return Answer::Unknown };
        {
            let mut known = self.known();
            let now = Instant::now();
            if let Some((answer, _)) = known.answers.get(domain).filter(|(_, until)| *until > now) {
                return answer.clone();
            }
            if known.silent_until.is_some_and(|until| until > now) {
                return Answer::Unknown;
            }
            if known.failures >= SILENT_AFTER {
                // This question finds out whether it speaks again; the others go on without.
                known.silent_until = Some(now + SILENT_FOR);
            }
        }
        let Ok(permit) = Arc::clone(&self.questions).try_acquire_owned() else { return Answer::Unknown };
        let (this, resolver, domain) = (Arc::clone(self), resolver.clone(), domain.to_owned());
        let question = tokio::spawn(async move {
            let _permit = permit;
            let (answer, life, is_silent) = match ask(&resolver, &domain).await {
                Some((answer, life)) => (answer, life, false),
                None => (Answer::Unknown, KEPT_SILENCE, true),
            };
            this.remember(domain, answer.clone(), life, is_silent);
            answer
        });
        match timeout(self.patience, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        }
    }

    fn remember(&self, domain: String, answer: Answer, life: Duration, is_silent: bool) {
        let mut known = self.known();
        let now = Instant::now();
        if is_silent {
            known.failures += 1;
            if known.failures == SILENT_AFTER {
                known.silent_until = Some(now + SILENT_FOR);
                warn!("DNS does not answer; domains count as groups of their own until it does");
            }
        } else {
            if known.failures >= SILENT_AFTER {
                info!("DNS answers again");
            }
            (known.failures, known.silent_until) = (0, None);
        }
        if known.answers.len() >= KEPT_MAX {
            known.answers.retain(|_, (_, until)| *until > now);
        }
        if known.answers.len() >= KEPT_MAX {
            // More domains than fit within their life: begin anew rather than grow.
            known.answers.clear();
        }
        known.answers.insert(domain, (answer, now + life));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in here can panic half-way.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn resolver(config: &DnsConfig) -> Result<TokioResolver, NetError> {
    let mut builder = if config.servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = config.servers.iter().copied().map(server).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = config.patience.max(Duration::from_millis(500));
    options.attempts = 1;
    // We remember ourselves, in terms of what we want to know.
    options.cache_size = 0;
    builder.build()
}

fn server(address: SocketAddr) -> NameServerConfig {
    let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
    (udp.port, tcp.port) = (address.port(), address.port());
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

/// The answer, and for how long it is kept. Nothing where the resolver itself does not answer.
async fn ask(resolver: &TokioResolver, domain: &str) -> Option<(Answer, Duration)> {
    let Ok(mut name) = Name::from_ascii(domain) else { return Some((Answer::Unknown, KEPT_SILENCE)) };
    // Nothing of the machine's search list.
    name.set_fqdn(true);
    let found = match resolver.mx_lookup(name).await {
        Ok(found) => found,
        Err(error) if error.is_nx_domain() => return Some((Answer::NoSuchDomain, KEPT_REFUSAL)),
        Err(error) if error.is_no_records_found() => {
            return Some((Answer::Exchangers([domain.to_owned()].into()), KEPT.0));
        }
        // It speaks, and cannot say: the servers of that domain are broken, which says nothing of other domains.
        Err(NetError::Dns(_)) => return Some((Answer::Unknown, KEPT_SILENCE)),
        Err(_) => return None,
    };
    let mut exchangers: Vec<(u16, String)> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::MX(mx) => Some((mx.preference, mx.exchange.to_ascii().to_ascii_lowercase())),
            _ => None,
        })
        .collect();
    exchangers.sort();
    let life = found.valid_until().saturating_duration_since(std::time::Instant::now()).clamp(KEPT.0, KEPT.1);
    Some(match exchangers.as_slice() {
        [] => (Answer::Exchangers([domain.to_owned()].into()), KEPT.0),
        [(_, root)] if root == "." => (Answer::TakesNoMail, KEPT_REFUSAL),
        list => (Answer::Exchangers(list.iter().map(|(_, name)| name.clone()).collect()), life),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    /// Answers every question with a code: failure for domains that begin with `bad`, else that there is no such domain.
    async fn server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let code = if packet[13..].starts_with(b"bad") { 2 } else { 3 };
                (packet[2], packet[3]) = (0x80 | (packet[2] & 1), 0x80 | code);
                let _ = socket.send_to(&packet[..length], from).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn domains_that_are_broken_do_not_make_the_resolver_count_as_silent() {
        let patience = Duration::from_secs(10);
        let config = DnsConfig { groups: true, check: true, servers: vec![server().await], patience };
        let dns = Dns::new(&config).unwrap();
        for n in 0..2 * SILENT_AFTER {
            assert_eq!(dns.look(&format!("bad{n}.example")).await, Answer::Unknown);
        }
        assert_eq!(dns.look("gone.example").await, Answer::NoSuchDomain);
    }
}
