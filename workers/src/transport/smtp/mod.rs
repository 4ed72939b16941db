//! Delivery by an SMTP relay: the connections to it, and the transactions that one message takes. A session itself is `postrider-smtp`'s.
//!
//! What an answer means is decided in [`crate::policy::classify`]; what follows from that is not decided here at all.

mod connection;
mod learned_limits;
mod outcome;
mod pool;
mod recipient_batches;
mod settings;

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
use jiff::Timestamp;
use lettre::transport::smtp::extension::ClientId;
use postrider_schemas::Lane;
use postrider_smtp::{After, Client, SubmitPermission};
use tokio::time::timeout;
use tracing::{info, warn};

use self::{
    connection::Connection,
    learned_limits::LearnedLimits,
    outcome::{EnvelopeCut, Reader, refusal},
    pool::Pool,
    recipient_batches::{Next, RecipientBatches},
};
pub use self::{
    pool::{ConnectionPermit, ConnectionUse},
    settings::RelaySettings,
};
use super::certificate::Shown;
use crate::policy::{
    classify::DataPhase,
    outcome::{Answer, Class, Mark, Outcome, Stage},
};

pub use postrider_smtp::{Auth, AuthMechanism, Mail, Settings, SettingsError, StageLimits, TlsMode};

/// Most transactions for one message at a relay that hangs up in the middle of them.
const ROUNDS_MAX: usize = 12;
/// How long idle connections may take to say goodbye.
const QUIT_LIMIT: Duration = Duration::from_secs(2);

/// One relay and the connections to it.
pub struct Relay {
    client: Client,
    settings: RelaySettings,
    shown: Arc<Shown>,
    pool: Arc<Pool>,
    learned: LearnedLimits,
}

/// What came of one transaction.
struct Round {
    outcome: Outcome,
    /// The relay left in the middle of the envelope.
    cut: Option<EnvelopeCut>,
    /// The envelope went in one write.
    pipelined: bool,
}

impl Relay {
    /// Checks the settings and reads the certificates; connects to nothing.
    pub fn new(settings: RelaySettings) -> Result<Self, SettingsError> {
        settings.check()?;
        let mut session = settings.session.clone();
        if session.hello.is_empty() {
            session.hello = full_name(&ClientId::default()).unwrap_or_default();
        }
        let client = Client::new(session)?;
        let pool = Pool::new(settings.connections, settings.idle);
        Ok(Self { client, settings, shown: Arc::default(), pool, learned: LearnedLimits::default() })
    }

    fn reader(&self) -> Reader<'_> {
        Reader { answers: &self.settings.answers, tls: self.settings.session.tls }
    }

    /// Waits in the line of this lane for the right to use one connection, parked or to be opened.
    pub async fn acquire(&self, lane: Lane) -> Result<ConnectionPermit<'_>, Outcome> {
        match timeout(self.settings.line, self.pool.acquire(lane)).await {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(refused(Class::Transient, "the transport is closed")),
            Err(_) => Err(refused(Class::Throttled, "no connection to the relay became free in time")),
        }
    }

    /// Opens a connection, logs in and says goodbye. The text says what went wrong.
    pub async fn greet(&self) -> Result<(), String> {
        let place = self.acquire(Lane::Transactional).await.map_err(|_| "no connection is free".to_owned())?;
        match Box::pin(Connection::open(&self.client, &self.shown, self.pool.mark(&place))).await {
            Ok(connection) => {
                connection.quit(QUIT_LIMIT).await;
                Ok(())
            }
            Err(failure) => Err(self.reader().answer(&failure).to_string()),
        }
    }

    /// Whether whoever comes now waits for a connection.
    pub fn is_saturated(&self) -> bool {
        self.pool.is_saturated()
    }

    /// Waits for a place as transactional mail does, and delivers: see [`Relay::deliver_with`].
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
        if permission.is_denied_after_all(self.settings.session.limits.data).await {
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
        let mut batches = RecipientBatches::new(mail.recipients.len(), self.learned.recipients_max());
        // In one go the envelope failed; whether commands were lost.
        let mut failed: Option<bool> = None;
        for _ in 0..ROUNDS_MAX {
            let is_serial = batches.is_serial || self.learned.is_serial();
            let round = if batches.is_whole() {
                self.transaction(place, mail, is_serial, permission).await
            } else {
                let recipients: Vec<_> = batches.next().iter().map(|index| mail.recipients[*index]).collect();
                self.transaction(place, Mail { recipients: &recipients, ..mail }, is_serial, permission).await
            };
            let Round { outcome, cut, pipelined } = round;
            let asked = batches.next().len();
            let next = match cut {
                Some(cut) => {
                    let was_serial = batches.is_serial;
                    let next = batches.cut(cut, outcome, pipelined);
                    if batches.is_serial && !was_serial {
                        // It may have been an accident.
                        failed = Some(false);
                    }
                    next
                }
                None if pipelined && is_out_of_order(&outcome) => {
                    (batches.is_serial, failed) = (true, Some(true));
                    Next::Again
                }
                None => {
                    self.learn(&outcome, asked, pipelined, failed.take());
                    batches.ended(outcome)
                }
            };
            if let Next::End(outcome) = next {
                return outcome;
            }
        }
        batches.given_up()
    }

    /// One transaction, on a connection that waits or a new one.
    async fn transaction<F>(
        &self,
        place: &ConnectionPermit<'_>,
        mail: Mail<'_>,
        is_serial: bool,
        permission: &mut SubmitPermission<'_, F>,
    ) -> Round
    where
        F: Future<Output = bool>,
    {
        if let Some(connection) = self.pool.take(place)
            && let Some(round) = self.transaction_on(place, connection, mail, is_serial, permission).await
        {
            return round;
        }
        // Rare, and large: by value it would be part of every delivery's future.
        let opened = Box::pin(Connection::open(&self.client, &self.shown, self.pool.mark(place))).await;
        let outcome = match opened {
            Ok(connection) => match self.transaction_on(place, connection, mail, is_serial, permission).await {
                Some(round) => return round,
                // Only an idle connection is stale.
                None => refused(Class::Transient, "the relay closed the connection"),
            },
            Err(failure) => self.reader().failed(&failure, DataPhase::No),
        };
        Round { outcome, cut: None, pipelined: false }
    }

    /// One transaction on this connection; nothing where the connection had been given up before.
    async fn transaction_on<F>(
        &self,
        place: &ConnectionPermit<'_>,
        mut connection: Connection,
        mail: Mail<'_>,
        is_serial: bool,
        permission: &mut SubmitPermission<'_, F>,
    ) -> Option<Round>
    where
        F: Future<Output = bool>,
    {
        if is_serial {
            connection.session.send_in_steps();
        }
        let pipelined = connection.session.pipelines();
        let (delivery, after) = connection.session.send_permitted(mail, permission).await;
        let outcome = self.reader().outcome(delivery);
        // A 421 about our pace is meant for us.
        if after == After::Stale && is_transient(&outcome) {
            return None;
        }
        self.put_back(place, connection, &after).await;
        Some(Round { outcome, cut: self.reader().cut(after), pipelined })
    }

    /// Remembers what the relay turned out to be like.
    fn learn(&self, outcome: &Outcome, asked: usize, pipelined: bool, failed: Option<bool>) {
        let host = &self.settings.session.host;
        if pipelined {
            self.learned.went_well_in_one_go();
        }
        if let Some(is_certain) = failed
            && matches!(outcome, Outcome::Accepted { .. })
            && self.learned.failed_in_one_go(is_certain)
        {
            warn!(
                host,
                "The relay offers PIPELINING and cannot do it: the envelope goes in steps from now on; `pipelining = false` says so from the start"
            );
        }
        if let Outcome::Accepted { refused, .. } = outcome
            && refused.iter().any(|one| one.refusal.answer.mark == Mark::TooManyRecipients)
        {
            let taken = asked - refused.len();
            if self.learned.takes_at_most(taken) {
                info!(
                    host,
                    recipients = taken,
                    "The relay takes so many recipients in one transaction; others follow in the next one"
                );
            }
        }
    }

    /// Parks the connection if it is fit for another message.
    async fn put_back(&self, place: &ConnectionPermit<'_>, mut connection: Connection, after: &After) {
        let is_fit = match after {
            After::Reusable => true,
            After::NeedsReset => connection.session.reset().await,
            After::Unusable | After::Stale | After::Cut(_) => false,
        };
        if !is_fit {
            return;
        }
        if connection.session.served() < self.settings.messages_per_connection {
            self.pool.park(place, connection);
        } else {
            connection.hang_up();
        }
    }

    /// Takes no further message and says goodbye on every idle connection, within two seconds. Deliveries that are under
    /// way go on to their end.
    pub async fn close(&self) {
        join_all(self.pool.close().into_iter().map(|connection| connection.quit(QUIT_LIMIT))).await;
    }

    /// Connections that wait for work.
    pub fn idle_connections(&self) -> usize {
        self.pool.parked()
    }

    /// When the certificate ends that the relay showed last.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.shown.end()
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        (&self.settings.session.host, self.settings.session.port)
    }

    /// Most connections at once.
    pub fn connections_max(&self) -> usize {
        self.settings.connections
    }

    /// Another number of connections at most, from now on.
    pub fn resize(&self, connections: usize) {
        self.pool.resize(connections);
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
    Outcome::Refused { refusal: refusal(class, Answer::local(Stage::Connect, text)), recipients: Vec::new() }
}

fn is_transient(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { refusal, .. } if refusal.class == Class::Transient)
}

/// Whether a relay saw commands in another order than they were sent in: some were lost.
fn is_out_of_order(outcome: &Outcome) -> bool {
    let Outcome::Refused { refusal, recipients } = outcome else { return false };
    let mut answers = std::iter::once(&refusal.answer).chain(recipients.iter().map(|one| &one.refusal.answer));
    answers.any(|answer| answer.code == Some(503) && answer.stage != Stage::Body)
}

/// The machine's name, where it is a full one. Without it EHLO says the connection's address.
fn full_name(machine: &ClientId) -> Option<String> {
    match machine {
        ClientId::Domain(name) if name.contains('.') => Some(name.clone()),
        _ => None,
    }
}

/// What is to be said of the name for EHLO, which many relays want to be a full one.
pub fn hello_warning(hello: Option<&str>) -> Option<String> {
    warning_of(hello.unwrap_or_default(), &ClientId::default())
}

fn warning_of(hello: &str, machine: &ClientId) -> Option<String> {
    match Some(hello).filter(|hello| !hello.is_empty()) {
        None if full_name(machine).is_none() => Some(
            "this machine's name has no dot: EHLO says the connection's address; set `hello` to a name that DNS knows"
                .to_owned(),
        ),
        Some(name) if name.parse::<IpAddr>().is_err() && !name.contains('.') => {
            Some(format!("`hello` is `{name}`, which has no dot: many relays refuse such a name"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_full_name_says_its_address_and_check_warns() {
        let name = |text: &str| ClientId::Domain(text.to_owned());
        assert_eq!(full_name(&name("worker-7")), None);
        assert_eq!(full_name(&name("worker.example")).as_deref(), Some("worker.example"));
        assert!(warning_of("", &name("worker-7")).unwrap().contains("EHLO says the connection's address"));
        assert!(warning_of("worker", &name("worker.example")).unwrap().contains("`worker`, which has no dot"));
        assert_eq!(warning_of("", &name("worker.example")), None);
        assert_eq!(warning_of("192.0.2.7", &name("worker-7")), None);
    }
}
