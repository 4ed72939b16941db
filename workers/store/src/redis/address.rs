//! Where Redis is: reads the URL of the store and dials. Does not repair anything; see [`super::link`] for that.

use std::{path::Path, time::Duration};

use postrider_producer::rabbitmq::address::{decoded, host_and_port, shown};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, ProtocolVersion, RedisResult,
    TlsCertificates, TlsMode,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};

use crate::StoreError;

/// Longest wait for a connection, and for an answer.
pub const LIMIT: Duration = Duration::from_secs(2);

/// An open connection, cheap to clone: clones share one pipelined socket per node.
#[derive(Clone)]
pub enum Conn {
    /// Standalone, or the master that Sentinel named.
    One(MultiplexedConnection),
    /// All masters.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a redis::Cmd) -> redis::RedisFuture<'a, redis::Value> {
        match self {
            Self::One(conn) => conn.req_packed_command(cmd),
            Self::Cluster(conn) => conn.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> redis::RedisFuture<'a, Vec<redis::Value>> {
        match self {
            Self::One(conn) => conn.req_packed_commands(pipeline, offset, count),
            Self::Cluster(conn) => conn.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(conn) => conn.get_db(),
            Self::Cluster(conn) => conn.get_db(),
        }
    }
}

/// A parsed URL. Holds secrets: no `Debug`.
pub struct Address {
    kind: RedisMode,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    tls: bool,
    nodes: Vec<(String, u16)>,
    /// In PEM, instead of the system's.
    authorities: Option<Vec<u8>>,
}

enum RedisMode {
    Standalone,
    Sentinel { master: String, password: Option<String> },
    Cluster,
}

impl Address {
    /// `redis[s]://`, `redis[s]+sentinel://h:p,h:p/MASTER[/DB][?sentinel_password=..]`, `redis[s]+cluster://h:p,h:p`, each with
    /// an optional `user:password@`. What stands there is used as it is or refused. Errors never repeat the URL, because it may hold a password.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let broken = |what: &str| StoreError::Broken(format!("store.url: {what}"));
        let decoded = |text: &str| decoded(text).map_err(|error| broken(&error));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| broken("not an address"))?;
        let unknown = || broken("the scheme is none of redis, rediss, redis+sentinel, redis+cluster, embedded");
        let (tls, mode) = match scheme.strip_prefix("rediss") {
            Some(mode) => (true, mode),
            None => (false, scheme.strip_prefix("redis").ok_or_else(unknown)?),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            None if login.is_empty() => (None, None),
            None => return Err(broken("a user without a password; a password alone is written `:password@`")),
            Some((_, "")) => return Err(broken("an empty password; leave the login out where Redis asks for none")),
            Some((user, password)) => {
                ((!user.is_empty()).then(|| decoded(user)).transpose()?, Some(decoded(password)?))
            }
        };
        let mut path = path.trim_end_matches('/').split('/').filter(|part| !part.is_empty());
        let mut sentinel_password = None;
        for (name, value) in
            query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
        {
            match name {
                "sentinel_password" if mode == "+sentinel" && !value.is_empty() => {
                    sentinel_password = Some(decoded(value)?);
                }
                // It is spoken in any case.
                "protocol" if matches!(value, "3" | "resp3") => {}
                _ => return Err(broken("a setting after `?` that is not known, or has no value that is")),
            }
        }
        let (kind, port) = match mode {
            "" => (RedisMode::Standalone, 6379),
            "+cluster" => (RedisMode::Cluster, 6379),
            "+sentinel" => {
                let master = path.next().map(decoded).transpose()?;
                let master =
                    master.ok_or_else(|| broken("the master's name is missing: redis+sentinel://HOST:PORT/NAME"))?;
                (RedisMode::Sentinel { master, password: sentinel_password }, 26379)
            }
            _ => return Err(unknown()),
        };
        let database = match path.next() {
            None => 0,
            Some(number) => number.parse::<u16>().map_err(|_| broken("the database is not a number"))?.into(),
        };
        let nodes = hosts.split(',').map(|host| host_and_port(host, port)).collect::<Result<Vec<_>, _>>();
        let nodes = nodes.map_err(|error| broken(&error))?;
        if path.next().is_some() || (mode.is_empty() && nodes.len() != 1) || (mode == "+cluster" && database != 0) {
            return Err(broken(
                "one host has no scheme of its own, several need +sentinel or +cluster, a cluster has database 0 only",
            ));
        }
        Ok(Self { kind, user, password, database, tls, nodes, authorities: None })
    }

    /// The same, trusting the authorities in this file and no others.
    pub fn trusting(mut self, ca_file: Option<&Path>) -> Result<Self, StoreError> {
        let broken = |what: &str| StoreError::Broken(format!("store.ca_file: {what}"));
        let Some(file) = ca_file else { return Ok(self) };
        if !self.tls {
            return Err(broken("store.url speaks no TLS; write rediss://, rediss+sentinel:// or rediss+cluster://"));
        }
        let pem = std::fs::read(file).map_err(|error| broken(&format!("{}: {error}", file.display())))?;
        if !pem.windows(27).any(|bytes| bytes == b"-----BEGIN CERTIFICATE-----") {
            return Err(broken(&format!("{} holds no certificate in PEM", file.display())));
        }
        self.authorities = Some(pem);
        Ok(self)
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        self.authorities.clone().map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) })
    }

    /// True where the keys of one command must share a slot.
    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, RedisMode::Cluster)
    }

    /// Hosts and ports, for people.
    pub fn shown(&self) -> String {
        self.nodes.iter().map(|(host, port)| shown(host, *port)).collect::<Vec<_>>().join(",")
    }

    /// A new connection; asks Sentinel anew who is master. Takes at most a few seconds.
    pub async fn dial(&self) -> RedisResult<Conn> {
        if self.tls {
            // Fails where the program has installed one already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(LIMIT)).set_response_timeout(Some(LIMIT));
        match &self.kind {
            RedisMode::Standalone => {
                let infos = self.infos()?;
                let info = infos.into_iter().next().ok_or(EMPTY)?;
                let client = match self.certificates() {
                    Some(certificates) => Client::build_with_tls(info, certificates)?,
                    None => Client::open(info)?,
                };
                Ok(Conn::One(client.get_multiplexed_async_connection_with_config(&config).await?))
            }
            RedisMode::Cluster => {
                let mut builder = ClusterClient::builder(self.infos()?)
                    .connection_timeout(LIMIT)
                    .response_timeout(LIMIT)
                    .overall_response_timeout(Some(2 * LIMIT))
                    .use_protocol(ProtocolVersion::RESP3)
                    .retries(3);
                if let Some(certificates) = self.certificates() {
                    builder = builder.certs(certificates);
                }
                if let Some(user) = &self.user {
                    builder = builder.username(user);
                }
                if let Some(password) = &self.password {
                    builder = builder.password(password);
                }
                Ok(Conn::Cluster(builder.build()?.get_async_connection().await?))
            }
            RedisMode::Sentinel { master, password } => {
                let mut builder = SentinelClientBuilder::new(
                    self.nodes.iter().map(|n| self.addr(n)),
                    master,
                    SentinelServerType::Master,
                )?
                .set_client_to_redis_db(self.database)
                .set_client_to_redis_protocol(ProtocolVersion::RESP3);
                if self.tls {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = self.certificates() {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
                if let Some(user) = &self.user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(one) = &self.password {
                    builder = builder.set_client_to_redis_password(one);
                }
                if let Some(one) = password {
                    builder = builder.set_client_to_sentinel_password(one);
                }
                let client = builder.build()?.async_get_client().await?;
                Ok(Conn::One(client.get_multiplexed_async_connection_with_config(&config).await?))
            }
        }
    }

    fn addr(&self, (host, port): &(String, u16)) -> ConnectionAddr {
        if self.tls {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.clone(), *port)
        }
    }

    fn infos(&self) -> RedisResult<Vec<redis::ConnectionInfo>> {
        let mut settings =
            redis::RedisConnectionInfo::default().set_db(self.database).set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info = |node| Ok(self.addr(node).into_connection_info()?.set_redis_settings(settings.clone()));
        self.nodes.iter().map(info).collect()
    }
}

const EMPTY: (redis::ErrorKind, &str) = (redis::ErrorKind::InvalidClientConfig, "no host");

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, shown: &str, database: i64, password: Option<&str>) {
        let address = Address::parse(url).ok().unwrap();
        assert_eq!(
            (address.shown().as_str(), address.database, address.password.as_deref()),
            (shown, database, password)
        );
    }

    #[test]
    fn every_form_of_address_is_read() {
        check("redis://localhost", "localhost:6379", 0, None);
        check("redis://u:p%40ss@h:1/3", "h:1", 3, Some("p@ss"));
        check("rediss://:pw@[::1]:7", "[::1]:7", 0, Some("pw"));
        check("redis://[2001:db8::5]/15", "[2001:db8::5]:6379", 15, None);
        check("redis://:a@b:c@h", "h:6379", 0, Some("a@b:c"));
        check("redis://us%3Aer:%3A%2F%3F%23%25@h/0", "h:6379", 0, Some(":/?#%"));
        check("redis://h?protocol=resp3", "h:6379", 0, None);
        check("redis+sentinel://a:1,b/main/2", "a:1,b:26379", 2, None);
        check("redis+cluster://a:1,b:2", "a:1,b:2", 0, None);
    }

    #[test]
    fn a_private_authority_is_read_and_needs_tls() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let refused = |url: &str| {
            let error = Address::parse(url).unwrap_or_else(|error| panic!("{error}")).trusting(Some(&file)).err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(refused("rediss://h").contains("ca.pem"), "it is not there");
        std::fs::write(&file, "nothing of the kind").unwrap();
        assert!(refused("rediss://h").contains("no certificate"));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
        assert!(refused("redis://h").contains("rediss://"));
        assert_eq!(refused("rediss+cluster://h"), "");
    }

    #[test]
    fn a_bad_address_is_refused_without_its_password() {
        for url in [
            "redis",
            "http://h",
            "redis://h:x",
            "redis://a,b",
            "redis://h/x",
            "redis+sentinel://h",
            "redis+cluster://h/1",
            "redis://h?x=1",
            "redis://",
            "redis://h/-1",
            "redis://h:0",
            "redis://h:",
            "redis://::1",
            "redis://[::1",
            "redis://[h]",
            "redis://h%20",
            "redissredis://h",
            "redis+x://h",
            "redis://user@h",
            "redis://user:@h",
            "redis://:@h",
            "redis://user:hunter2%zz@h",
            "redis://user:hunter2/x@h",
            "redis://user:1/hunter2@h",
            "redis://user:hunter2?x@h",
        ] {
            let url = if url.contains('@') { url.to_owned() } else { url.replace("://", "://user:hunter2@") };
            let error = Address::parse(&url).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert!(!error.is_down() && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
