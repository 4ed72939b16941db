//! How fast this worker may send: asks the store before a message goes, waits where the wait is short, and tells the store when a
//! transport asks for patience. What is decided stands in [`crate::policy::rate_limit`]; what a wait means for the job, in the attempt.

pub mod connection_leases;
pub mod deferral;
mod fallback;
mod feedback;
pub mod mailbox_providers;
mod observed_rate;
mod overrides;
pub mod scopes;
mod token;
mod token_cache;
pub mod unreachable_domains;
pub mod usage;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use postrider_schemas::{Job, ladder};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::token::Token;
use self::{
    connection_leases::ConnectionShares,
    deferral::{Deferral, EARLY, LADDER_MIN, Slot},
    fallback::LocalFallback,
    observed_rate::ObservedRate,
    overrides::Overrides,
    token_cache::TokenCache,
    usage::BindingScopes,
};
use crate::{
    concurrency::job_slots::JobSlot,
    config::{Config, DnsConfig, LimitsConfig},
    dns::{Dns, DomainAnswers, ResolverSetupError},
    policy::{
        outcome::{Answer, Class, Refusal, Stage},
        rate_limit::{
            admit::{Admission, AdmissionRequest, HOLD_US},
            scope::ScopeLimits,
        },
    },
    store::Store,
    telemetry::traces,
};

/// How often this worker says that it lives, so that others know their share.
const PRESENCE_EVERY: Duration = Duration::from_secs(5);
/// How often it looks for scopes that are not as configured.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long it counts as alive without that.
const PRESENCE_LIFE: Duration = Duration::from_secs(20);
/// Questions about one message before it is deferred whatever the answer: jobs that wait in the worker may lose to others a few times.
const QUESTIONS_MAX: u32 = 4;
/// The limits as this worker sees them. Clones share it.
#[derive(Clone)]
pub struct Limiter(Arc<LimiterInner>);

struct LimiterInner {
    store: Store,
    config: LimitsConfig,
    checks_recipients: bool,
    groups_by_dns: bool,
    transports: Vec<String>,
    dns: Arc<Dns>,
    tokens: TokenCache,
    fallback: LocalFallback,
    parts: ConnectionShares,
    observed_rate: ObservedRate,
    binding: BindingScopes,
    /// Scopes that are not as configured, as the store said of late or an answer here made them.
    overrides: Mutex<Overrides>,
    /// Scopes that this worker heard to be paused; others hear of it by asking.
    paused: watch::Sender<HashMap<String, feedback::PausedScope>>,
    holder: String,
}

/// What wants to go.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The job.
    pub job: &'a Job,
    /// The transport's position.
    pub transport: usize,
    /// The groups of its recipients.
    pub groups: &'a [String],
    /// What is known of their domains.
    pub domains: &'a DomainAnswers,
    /// It was never deferred.
    pub fresh: bool,
    /// It may wait for its turn in the worker.
    pub hold: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum LimitAnswer {
    /// It may go now, by this token.
    Go(Token),
    /// Not now.
    Defer(Deferral),
    /// Not for some time, and nothing was put in line: the route says what follows.
    Full(Refusal),
}

impl Limiter {
    /// Sets the limits of a configuration up; asks nobody yet.
    pub fn new(config: &Config, store: Store) -> Result<Self, ResolverSetupError> {
        let holder = format!("{}-{:08x}", std::process::id(), uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff_ffff);
        Self::held_by(holder, config, store, LocalFallback::new(config.limits.alone), ConnectionShares::default())
    }

    /// The same worker with another configuration: what it has of the shared limits stays its own, and it goes on from what it knows of them.
    pub fn renewed(&self, config: &Config) -> Result<Self, ResolverSetupError> {
        let (fallback, parts) = (self.0.fallback.renewed(config.limits.alone), self.0.parts.clone());
        let new = Self::held_by(self.0.holder.clone(), config, self.0.store.clone(), fallback, parts)?;
        let overrides = self.overrides().clone();
        *new.overrides() = overrides;
        Ok(new)
    }

    fn held_by(
        holder: String,
        config: &Config,
        store: Store,
        fallback: LocalFallback,
        parts: ConnectionShares,
    ) -> Result<Self, ResolverSetupError> {
        let DnsConfig { groups, check, .. } = config.dns;
        Ok(Self(Arc::new(LimiterInner {
            holder,
            dns: Dns::new(&config.dns)?,
            tokens: TokenCache::new(config.limits.lease_above),
            fallback,
            parts,
            observed_rate: ObservedRate::default(),
            binding: BindingScopes::default(),
            overrides: Mutex::default(),
            paused: watch::Sender::default(),
            transports: config.transports.iter().map(|one| one.name.clone()).collect(),
            config: config.limits.clone(),
            checks_recipients: check,
            groups_by_dns: groups,
            store,
        })))
    }

    /// Says now and then that this worker lives, and learns how many others do and which scopes are not as configured, until `stop`.
    /// While the store is away, what it said last stands.
    pub async fn watch(self, stop: CancellationToken) {
        let mut said = None::<Instant>;
        loop {
            if said.is_none_or(|said| said.elapsed() >= PRESENCE_EVERY)
                && let Ok(workers) = self.0.store.presence(&self.0.holder, PRESENCE_LIFE).await
            {
                said = Some(Instant::now());
                self.0.fallback.workers(workers);
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
            self.look().await;
        }
    }

    /// Looks which scopes are paused, cut or held to another rate. Those without a configured limit are asked about only then.
    pub async fn look(&self) {
        let asked = Instant::now();
        let scopes: HashSet<String> = match self.0.store.overrides().await {
            Ok(scopes) => scopes.into_iter().collect(),
            Err(error) if error.is_down() => return self.0.fallback.begun(Instant::now()),
            Err(_) => return,
        };
        self.0.fallback.ended(Instant::now());
        self.forget_pauses(asked, &scopes);
        self.learn(&scopes).await;
        let changed = self.overrides().looked(asked, &scopes);
        if !changed.is_empty() {
            self.0.tokens.forget(changed.iter().map(String::as_str));
        }
    }

    fn overrides(&self) -> MutexGuard<'_, Overrides> {
        // Nothing in here can panic half-way.
        self.0.overrides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scopes that have something to say: those with limits, and those that are not as configured.
    fn to_be_asked(&self, demands: Vec<ScopeLimits>) -> Vec<ScopeLimits> {
        let overrides = self.overrides();
        demands.into_iter().filter(|one| !one.limits.is_empty() || overrides.contains(&one.scope)).collect()
    }

    /// The question of an attempt, to be asked with its claim; nothing where there is none, or where tokens are at hand in batches.
    pub fn question(&self, subject: Subject<'_>, queue: bool) -> Option<AdmissionRequest> {
        let demands = self.demands(subject);
        if !self.0.tokens.are_asked_for_one_by_one(&demands) || !self.0.store.is_up() {
            return None;
        }
        let ask = self.ask(subject, demands, queue)?;
        Some(self.0.fallback.with_less_burst(&ask, Instant::now()).into_owned())
    }

    /// Nothing where nothing limits the attempt.
    fn ask(&self, subject: Subject<'_>, demands: Vec<ScopeLimits>, queue: bool) -> Option<AdmissionRequest> {
        let demands = self.to_be_asked(demands);
        if demands.is_empty() {
            return None;
        }
        let Subject { job, fresh, hold, .. } = subject;
        let weight = self.weight(job.tenant());
        Some(AdmissionRequest {
            weight,
            fresh,
            queue,
            hold,
            ..AdmissionRequest::fresh(demands, job.lane(), job.tenant().as_str())
        })
    }

    /// Asks until the message may go, or has to wait for longer than is waited in the worker. Whoever waits leaves its job slot to others.
    /// `asked` is a question that was asked before, with its answer.
    pub async fn admit(
        &self,
        subject: Subject<'_>,
        queue: bool,
        job_slot: &JobSlot,
        asked: Option<(AdmissionRequest, Admission)>,
    ) -> LimitAnswer {
        let permission = self.permission(subject, queue, job_slot, asked).await;
        if matches!(permission, LimitAnswer::Go(_)) {
            self.goes(subject);
        }
        permission
    }

    async fn permission(
        &self,
        subject: Subject<'_>,
        queue: bool,
        job_slot: &JobSlot,
        asked: Option<(AdmissionRequest, Admission)>,
    ) -> LimitAnswer {
        let (mut ask, mut answer) = match asked {
            Some((ask, answer)) => (ask, Some(answer)),
            None => match self.ask(subject, self.demands(subject), queue) {
                Some(ask) => (ask, None),
                None => return LimitAnswer::Go(Token::UNLIMITED),
            },
        };
        for question in 1..=QUESTIONS_MAX {
            let admission = match answer.take() {
                Some(admission) => admission,
                None => match self.asked(&ask).await {
                    Some(admission) => admission,
                    None => return LimitAnswer::Defer(Deferral::StoreDown),
                },
            };
            match admission {
                Admission::Free => return LimitAnswer::Go(Token::UNLIMITED),
                Admission::Go { wait_us, step_us, .. } => {
                    let token = Token::due(Instant::now() + micros(wait_us), step_us);
                    let _waiting = (wait_us > 0.0).then(|| traces::waiting("limit"));
                    job_slot.hold(micros(wait_us)).await;
                    return LimitAnswer::Go(token);
                }
                Admission::Park { park_us, .. }
                    if park_us <= HOLD_US && question < QUESTIONS_MAX && job_slot.may_hold() =>
                {
                    ask.fresh = false;
                    let _waiting = traces::waiting("limit");
                    job_slot.hold(micros(park_us)).await;
                    ask.hold = job_slot.may_hold();
                }
                Admission::Park { park_us, scope, .. } => {
                    let scope = why(&ask, scope);
                    self.0.binding.note(&scope, Instant::now());
                    let mut wait = micros(park_us);
                    if wait < LADDER_MIN && !job_slot.may_hold() {
                        return LimitAnswer::Defer(Deferral::Limit(Slot::soon(wait), scope));
                    }
                    if (ladder::WAIT_MIN..LADDER_MIN).contains(&wait) {
                        // The ladder would be late: the little that is too much for the way back at once is waited for here.
                        let little = wait.saturating_sub(EARLY);
                        let _waiting = traces::waiting("limit");
                        job_slot.hold(little).await;
                        wait = EARLY;
                    }
                    return LimitAnswer::Defer(Deferral::Limit(Slot::after(wait), scope));
                }
                Admission::Full { wait_us, scope } => {
                    let scope = why(&ask, scope);
                    self.0.binding.note(&scope, Instant::now());
                    return LimitAnswer::Full(full(wait_us, &scope));
                }
            }
        }
        // The last question was answered above, whatever the answer.
        LimitAnswer::Go(Token::UNLIMITED)
    }

    /// A message may go: it counts where a cut would be a part of how fast they go.
    fn goes(&self, subject: Subject<'_>) {
        let (config, name) = (&self.0.config, &self.0.transports[subject.transport]);
        let is_free = |group: &&String| config.rates_of(name, group).is_empty();
        let groups = subject.groups.iter().filter(is_free).map(|group| scopes::group(name, group));
        let whole = config.transports[subject.transport].rates.is_empty().then(|| scopes::transport(name));
        self.0.observed_rate.count(whole.into_iter().chain(groups), Instant::now());
    }

    /// One question, to whoever can answer it now; nothing where the store is away and the job is not to go without it.
    async fn asked(&self, ask: &AdmissionRequest) -> Option<Admission> {
        // Not everybody who waits for a store that is away asks it at once when it is back.
        if !self.0.store.is_up()
            && let Err(error) = self.0.store.there().await
        {
            return self.alone(ask, &error);
        }
        let with_less_burst = self.0.fallback.with_less_burst(ask, Instant::now());
        match self.0.tokens.admit(&self.0.store, &with_less_burst).await {
            Err(error) if error.is_down() => self.alone(ask, &error),
            Err(error) => {
                // A mistake of ours or of the store's must not stop the mail; it is as if nothing was limited.
                warn!(%error, "The store refused a question about limits; the message goes");
                Some(Admission::Free)
            }
            Ok(admission) => {
                self.0.fallback.ended(Instant::now());
                Some(admission)
            }
        }
    }
}

fn micros(us: f64) -> Duration {
    Duration::from_secs_f64(us.max(0.0) / 1e6)
}

fn why(ask: &AdmissionRequest, scope: usize) -> String {
    ask.demands.get(scope).map(|one| one.scope.clone()).unwrap_or_default()
}

fn full(wait_us: f64, scope: &str) -> Refusal {
    let answer = Answer::local(Stage::Connect, &format!("limited by {scope}"));
    Refusal { class: Class::Throttled, answer, retry_after: Some(micros(wait_us)) }
}

/// Seconds between two lines of log about the same thing.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Lets one line through now and then.
#[derive(Default)]
struct LogThrottle(std::sync::Mutex<Option<Instant>>);

impl LogThrottle {
    fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// Said once when limits are whole again.
fn say_whole() {
    info!("The store answers: limits hold over all workers again");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::load_text, store::StoreOptions};

    const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                          [[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

    #[tokio::test]
    async fn a_changed_configuration_forgets_neither_the_other_workers_nor_what_is_paused() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}", folder.path().join("store.db").display());
        let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
        let config = load_text(CONFIG).unwrap();
        let limiter = Limiter::new(&config, store).unwrap();
        limiter.0.fallback.workers(4);
        limiter.overrides().note("transport:relay", Instant::now());
        let renewed = limiter.renewed(&config).unwrap();
        assert_eq!(renewed.0.fallback.known_workers(), Some(4.0));
        assert!(renewed.overrides().contains("transport:relay"));
    }
}
