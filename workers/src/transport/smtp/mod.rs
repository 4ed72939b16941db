//! Delivery by an SMTP relay: a session of our own on a TCP stream without delay, built from lettre's
//! credentials and from rustls. Not lettre's client: see DECISIONS.
//!
//! What an answer means is decided in [`crate::policy::classify`]; what follows from that is not decided here at all.

mod auth;
mod body;
mod ehlo_capabilities;
mod failure;
mod pool;
mod reply;
mod session;
mod settings;
mod submit_permission;
mod tls;
mod transaction;
mod wire;

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
use jiff::Timestamp;
use lettre::transport::smtp::extension::ClientId;
use postrider_schemas::{EmailAddress, Lane};
use tokio::time::timeout;

use self::{
    failure::SmtpFailure,
    pool::Pool,
    session::{RelayAddress, Session},
    submit_permission::SubmitPermission,
    tls::TlsClient,
    transaction::After,
};
pub use self::{
    pool::ConnectionPermit,
    settings::{Auth, AuthMechanism, RelayError, RelaySettings, StageLimits, TlsMode},
};
use crate::policy::{
    outcome::{Class, Outcome, Stage},
    rate_limit::connection_split::ConnectionUse,
};

/// How long idle connections may take to say goodbye.
const QUIT_LIMIT: Duration = Duration::from_secs(2);

/// A message and its envelope.
#[derive(Clone, Copy)]
pub struct Mail<'a> {
    /// The envelope sender, to which bounces go; `None` is the null sender `<>`.
    pub from: Option<&'a EmailAddress>,
    /// The envelope recipients, at least one. Refusals name them by their position here.
    pub recipients: &'a [&'a EmailAddress],
    /// The MIME message with CRLF line ends. Copied only where it must be changed for the wire.
    pub message: &'a [u8],
}

impl Mail<'_> {
    fn needs_smtputf8(self) -> bool {
        self.from.into_iter().chain(self.recipients.iter().copied()).any(EmailAddress::needs_smtputf8)
    }
}

/// One relay and the connections to it.
pub struct Relay {
    target: RelayAddress,
    pool: Arc<Pool>,
}

impl Relay {
    /// Checks the settings and reads the certificates; connects to nothing.
    pub fn new(settings: RelaySettings) -> Result<Self, RelayError> {
        settings.check()?;
        let tls = if settings.tls == TlsMode::None { None } else { Some(TlsClient::new(&settings)?) };
        let hello = client_id(&settings.hello);
        let pool = Pool::new(settings.connections, settings.idle);
        Ok(Self { target: RelayAddress { settings, tls, hello }, pool })
    }

    /// Waits in the line of this lane for the right to use one connection, parked or to be opened.
    pub async fn acquire(&self, lane: Lane) -> Result<ConnectionPermit<'_>, Outcome> {
        match timeout(self.target.settings.limits.line, self.pool.acquire(lane)).await {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(refused(Class::Transient, "the transport is closed")),
            Err(_) => Err(refused(Class::Throttled, "no connection to the relay became free in time")),
        }
    }

    /// Whether whoever of this lane comes now waits for a connection.
    pub fn is_saturated(&self, lane: Lane) -> bool {
        self.pool.is_saturated(lane)
    }

    /// A lane uses at most so many of the connections from now on.
    pub fn hold_to(&self, lane: Lane, most: usize) {
        self.pool.hold_to(lane, most);
    }

    /// Waits for a place as transactional mail does, and delivers: see [`Relay::deliver_with`]. Takes no longer than [`StageLimits::longest`].
    pub async fn deliver<F>(&self, mail: Mail<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        match self.acquire(Lane::Transactional).await {
            Ok(place) => self.deliver_with(place, mail, may_submit).await,
            Err(outcome) => outcome,
        }
    }

    /// Delivers one message, at most once.
    ///
    /// `may_submit` is first polled when a connection is there, then alongside the envelope. The message's first byte is
    /// written only after it said `true`; `false` ends in [`Outcome::LostClaim`]. Once polled it is brought to its end
    /// before this returns, unless that takes longer than the limit for DATA.
    ///
    /// Dropping the future closes the connection: nothing of an abandoned delivery can reach another one. Whether the
    /// message was taken is then unknown, if `may_submit` had said `true`.
    pub async fn deliver_with<F>(&self, place: ConnectionPermit<'_>, mail: Mail<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let may_submit = pin!(may_submit);
        let mut permission = SubmitPermission::new(may_submit);
        let outcome = self.attempt(&place, mail, &mut permission).await;
        // Whatever is parked was parked under it.
        drop(place);
        if permission.is_denied_after_all(self.target.settings.limits.data).await {
            return Outcome::LostClaim;
        }
        outcome
    }

    async fn attempt<F>(
        &self,
        place: &ConnectionPermit<'_>,
        mail: Mail<'_>,
        permission: &mut SubmitPermission<'_, F>,
    ) -> Outcome
    where
        F: Future<Output = bool>,
    {
        if let Some(mut session) = self.pool.take(place) {
            let (outcome, after) = session.transact(mail, permission).await;
            if after != After::Stale {
                self.put_back(place, session, after).await;
                return outcome;
            }
        }
        // Rare, and large: by value it would be part of every delivery's future.
        let mut session = match Box::pin(Session::open(&self.target, self.pool.mark(place))).await {
            Ok(session) => session,
            Err(failure) => return failure.into_outcome(),
        };
        let (outcome, after) = session.transact(mail, permission).await;
        self.put_back(place, session, after).await;
        outcome
    }

    /// Parks the session if it is fit for another message.
    async fn put_back(&self, place: &ConnectionPermit<'_>, mut session: Session, after: After) {
        let is_fit = match after {
            After::Park => true,
            After::Reset => session.reset().await,
            After::Drop | After::Stale => false,
        };
        if !is_fit {
            return;
        }
        if session.served() < self.target.settings.messages_per_connection {
            self.pool.park(place, session);
        } else {
            session.hang_up();
        }
    }

    /// Takes no further message and says goodbye on every idle connection, within two seconds. Deliveries that are under
    /// way go on to their end.
    pub async fn close(&self) {
        join_all(self.pool.close().into_iter().map(|session| session.quit(QUIT_LIMIT))).await;
    }

    /// Connections that wait for work.
    pub fn idle_connections(&self) -> usize {
        self.pool.parked()
    }

    /// When the certificate ends that the relay showed last.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.target.tls.as_ref().and_then(TlsClient::certificate_end)
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        (&self.target.settings.host, self.target.settings.port)
    }

    /// Most connections at once.
    pub fn connections_max(&self) -> usize {
        self.target.settings.connections
    }

    /// Another number of connections at most, from now on.
    pub fn resize(&self, connections: usize) {
        self.pool.resize(connections);
    }

    /// Whether there may be no connections now.
    pub fn is_shut(&self) -> bool {
        self.pool.is_shut()
    }

    /// The most connections that were wanted at once since the last look, and those that are in use or parked.
    pub fn demand(&self) -> (usize, usize) {
        self.pool.demand()
    }

    /// Another relay stands for it from now on: see [`Transport::replace`](crate::transport::Transport::replace).
    pub fn replace(&self) {
        self.pool.replace();
    }

    /// What its connections are for now.
    pub fn use_now(&self) -> ConnectionUse {
        self.pool.use_now()
    }

    /// Connections that are open or being opened.
    pub fn open_connections(&self) -> usize {
        self.pool.open()
    }
}

fn refused(class: Class, text: &str) -> Outcome {
    SmtpFailure::local(Stage::Connect, class, text).into_outcome()
}

fn client_id(hello: &str) -> ClientId {
    match hello.parse() {
        Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
        Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
        Err(_) if hello.is_empty() => ClientId::default(),
        Err(_) => ClientId::Domain(hello.to_owned()),
    }
}
