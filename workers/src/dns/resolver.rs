//! Questions to the resolver, one at a time. Remembers nothing.

use std::{net::SocketAddr, time::Duration};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
};

use super::DnsAnswer;
use crate::config::DnsConfig;

/// How long a positive answer is kept at least and at most, whatever its time to live.
const KEPT: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(6));
/// How long it is remembered that a domain does not exist or takes no mail.
const KEPT_REFUSAL: Duration = Duration::from_mins(5);
/// How long nobody asks again about a domain of which the resolver cannot say anything.
const KEPT_FAILURE: Duration = Duration::from_secs(30);

/// Why the resolver cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("setting `dns.servers`: {0}")]
pub struct ResolverSetupError(NetError);

/// A resolver. Clones share its connections.
#[derive(Clone)]
pub(super) struct Resolver(TokioResolver);

impl Resolver {
    /// Asks nobody yet.
    pub(super) fn new(config: &DnsConfig) -> Result<Self, ResolverSetupError> {
        build(config).map(Self).map_err(ResolverSetupError)
    }

    /// The answer about a domain, and for how long it is kept. Nothing where the resolver says nothing at all, for about two patiences.
    pub(super) async fn ask(&self, domain: &str) -> Option<(DnsAnswer, Duration)> {
        let Ok(mut name) = Name::from_ascii(domain) else { return Some((DnsAnswer::Unknown, KEPT_FAILURE)) };
        // Nothing of the machine's search list.
        name.set_fqdn(true);
        let found = match self.0.mx_lookup(name).await {
            Ok(found) => found,
            Err(error) if error.is_nx_domain() => return Some((DnsAnswer::NoSuchDomain, KEPT_REFUSAL)),
            Err(error) if error.is_no_records_found() => {
                return Some((DnsAnswer::Exchangers([domain.to_owned()].into()), KEPT.0));
            }
            // It speaks, and cannot say: the servers of that domain are broken, which says nothing of other domains.
            Err(NetError::Dns(_)) => return Some((DnsAnswer::Unknown, KEPT_FAILURE)),
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
            [] => (DnsAnswer::Exchangers([domain.to_owned()].into()), KEPT.0),
            [(_, root)] if root == "." => (DnsAnswer::TakesNoMail, KEPT_REFUSAL),
            list => (DnsAnswer::Exchangers(list.iter().map(|(_, name)| name.clone()).collect()), life),
        })
    }

    /// Whether it says anything about the root, whose name servers every resolver knows by itself (RFC 8109); a refusal is an answer too.
    pub(super) async fn speaks(&self) -> bool {
        matches!(self.0.lookup(Name::root(), RecordType::NS).await, Ok(_) | Err(NetError::Dns(_)))
    }
}

fn build(config: &DnsConfig) -> Result<TokioResolver, NetError> {
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
