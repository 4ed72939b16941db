//! What DNS says of recipients' domains, with answers that are kept for a while. DNS never stops mail: the domains of a job are asked about side by
//! side, an answer that does not come in time is none, and while the resolver is silent nobody waits for it. Decides nothing about groups or
//! recipients.

mod cache;
mod resolver;
#[cfg(test)]
pub(crate) mod test_server;

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

pub use self::resolver::ResolverSetupError;
use self::{
    cache::{CachedAnswers, CachedState, PendingAnswer, SilenceFinding},
    resolver::Resolver,
};
use crate::config::DnsConfig;

/// While the resolver is silent it is asked again so often whether it speaks.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// Questions under way at once.
const ASKED_MAX: usize = 256;

/// What is known of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsAnswer {
    /// Names of its mail exchangers in lower case, the preferred one first; the domain itself where it names none.
    Exchangers(Arc<[String]>),
    /// There is no such domain.
    NoSuchDomain,
    /// It says that it takes no mail (RFC 7505).
    TakesNoMail,
    /// No answer, or one that says nothing.
    Unknown,
}

/// What is known of the domains of a job: one look, for everything that is decided about its recipients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainAnswers(HashMap<String, DnsAnswer>);

impl DomainAnswers {
    /// What is known of a domain; nothing of one that was not asked about.
    pub fn of(&self, domain: &str) -> &DnsAnswer {
        self.0.get(domain).unwrap_or(&DnsAnswer::Unknown)
    }
}

impl<D: Into<String>> FromIterator<(D, DnsAnswer)> for DomainAnswers {
    fn from_iter<I: IntoIterator<Item = (D, DnsAnswer)>>(all: I) -> Self {
        Self(all.into_iter().map(|(domain, answer)| (domain.into(), answer)).collect())
    }
}

/// A resolver that remembers.
pub struct Dns {
    resolver: Option<Resolver>,
    patience: Duration,
    known: Mutex<CachedAnswers>,
    questions: Arc<Semaphore>,
}

impl Dns {
    /// Asks nobody yet, and never does where nothing wants it.
    pub fn new(config: &DnsConfig) -> Result<Arc<Self>, ResolverSetupError> {
        let wanted = config.groups || config.check;
        let resolver = wanted.then(|| Resolver::new(config)).transpose()?;
        let questions = Arc::new(Semaphore::new(ASKED_MAX));
        Ok(Arc::new(Self { resolver, patience: config.patience, known: Mutex::default(), questions }))
    }

    /// What can be said of these domains at once; nothing where somebody would have to be waited for.
    pub fn recall(&self, domains: &[&str]) -> Option<DomainAnswers> {
        if self.resolver.is_none() {
            return Some(DomainAnswers::default());
        }
        let (known, now) = (self.known(), Instant::now());
        let all = domains.iter().map(|domain| match known.state(domain, now) {
            CachedState::Known(answer) => Some((*domain, answer)),
            CachedState::Asked(_) | CachedState::Open => None,
        });
        all.collect()
    }

    /// What is known of these domains, after the configured patience at most, however many there are. An answer that comes later is there for the
    /// next one who asks; until then nobody waits for it again.
    pub async fn look(self: &Arc<Self>, domains: &[&str]) -> DomainAnswers {
        let Some(resolver) = &self.resolver else { return DomainAnswers::default() };
        let begun: Vec<_> = domains.iter().map(|domain| (*domain, self.begin(resolver, domain))).collect();
        let mut found = DomainAnswers::default();
        for (domain, state) in begun {
            let answer = match state {
                Ok(answer) => answer,
                // Every question gives up by itself when its patience is over.
                Err(mut heard) => heard
                    .wait_for(Option::is_some)
                    .await
                    .ok()
                    .and_then(|answer| answer.clone())
                    .unwrap_or(DnsAnswer::Unknown),
            };
            found.0.insert(domain.to_owned(), answer);
        }
        found
    }

    /// The answer where nobody has to be waited for, else where it will be heard.
    fn begin(self: &Arc<Self>, resolver: &Resolver, domain: &str) -> Result<DnsAnswer, PendingAnswer> {
        let mut known = self.known();
        match known.state(domain, Instant::now()) {
            CachedState::Known(answer) => return Ok(answer),
            CachedState::Asked(heard) => return Err(heard),
            CachedState::Open => {}
        }
        let Ok(permit) = Arc::clone(&self.questions).try_acquire_owned() else { return Ok(DnsAnswer::Unknown) };
        let (tell, heard) = watch::channel(None);
        known.asks(domain, heard.clone());
        tokio::spawn(Arc::clone(self).ask(resolver.clone(), domain.to_owned(), tell, permit));
        Err(heard)
    }

    async fn ask(
        self: Arc<Self>,
        resolver: Resolver,
        domain: String,
        tell: watch::Sender<Option<DnsAnswer>>,
        _permit: OwnedSemaphorePermit,
    ) {
        let mut question = pin!(resolver.ask(&domain));
        let in_time = timeout(self.patience, &mut question).await;
        let is_late = in_time.is_err();
        let found = if let Ok(found) = in_time {
            found
        } else {
            tell.send_replace(Some(DnsAnswer::Unknown));
            self.missed(&resolver);
            question.await
        };
        match &found {
            Some(_) => self.spoke(),
            None if !is_late => self.missed(&resolver),
            None => {}
        }
        let answer = found.as_ref().map_or(DnsAnswer::Unknown, |(answer, _)| answer.clone());
        self.known().hear(&domain, found, Instant::now());
        tell.send_replace(Some(answer));
    }

    fn missed(self: &Arc<Self>, resolver: &Resolver) {
        let begun = self.known().silence.missed();
        if let Some(search) = begun {
            tokio::spawn(listen(Arc::downgrade(self), resolver.clone(), search));
        }
    }

    fn spoke(&self) {
        if self.known().silence.spoke() {
            info!("DNS answers again");
        }
    }

    fn known(&self) -> MutexGuard<'_, CachedAnswers> {
        // Nothing in here can panic half-way.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out whether the resolver speaks at all, and goes on while it does not. Ends with the configuration that names it.
async fn listen(dns: Weak<Dns>, resolver: Resolver, search: u32) {
    loop {
        let speaks = resolver.speaks().await;
        let Some(dns) = dns.upgrade() else { return };
        let found = dns.known().silence.searched(search, speaks);
        match found {
            SilenceFinding::Speaks => {
                debug!("DNS speaks; the servers of some domains do not answer");
                return;
            }
            SilenceFinding::SpeaksAgain => {
                info!("DNS answers again");
                return;
            }
            SilenceFinding::IsSilent => {
                warn!("DNS does not answer; domains count as groups of their own until it does");
            }
            SilenceFinding::StillSilent => {}
            SilenceFinding::Outdated => return,
        }
        drop(dns);
        sleep(SILENT_FOR).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        cache::SILENT_AFTER,
        test_server::{TestReply, TestServer},
        *,
    };

    const PATIENCE: Duration = Duration::from_millis(200);

    fn names(prefix: &str, count: u32) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}.example")).collect()
    }

    async fn look(dns: &Arc<Dns>, names: &[String]) -> DomainAnswers {
        dns.look(&names.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Waits for what the resolver's own time decides.
    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn many_domains_at_a_silent_resolver_take_one_patience_together_and_none_the_next_time() {
        let server = TestServer::start(|_| TestReply::Nothing).await;
        let dns = Dns::new(&server.config(PATIENCE)).unwrap();
        let all = names("d", 20);
        let begin = Instant::now();
        let found = look(&dns, &all).await;
        assert!(begin.elapsed() < PATIENCE * 5, "{:?}", begin.elapsed());
        assert!(all.iter().all(|one| *found.of(one) == DnsAnswer::Unknown));
        let begin = Instant::now();
        assert_eq!(look(&dns, &all).await, found);
        assert!(begin.elapsed() < PATIENCE / 2, "what was missed is remembered: {:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn an_answer_that_comes_late_counts_as_soon_as_it_is_there() {
        let late = PATIENCE * 2;
        let server = TestServer::start(move |_| TestReply::Late(late)).await;
        let dns = Dns::new(&server.config(PATIENCE)).unwrap();
        assert_eq!(*dns.look(&["late.example"]).await.of("late.example"), DnsAnswer::Unknown);
        let recalled = || dns.recall(&["late.example"]).unwrap_or_default();
        assert_eq!(*recalled().of("late.example"), DnsAnswer::Unknown, "nobody waits for it meanwhile");
        until("the late answer", || *recalled().of("late.example") == DnsAnswer::NoSuchDomain).await;
    }

    #[tokio::test]
    async fn who_asks_for_what_is_being_asked_waits_for_the_same_answer() {
        let server = TestServer::start(|_| TestReply::NoSuchDomain).await;
        let dns = Dns::new(&server.config(Duration::from_secs(10))).unwrap();
        assert_eq!(dns.recall(&["one.example"]), None);
        let left = async { dns.questions.available_permits() };
        let (first, second, left) =
            tokio::join!(dns.look(&["one.example"]), dns.look(&["one.example", "two.example"]), left);
        assert_eq!(left, ASKED_MAX - 2);
        assert_eq!(
            (first.of("one.example"), second.of("one.example")),
            (&DnsAnswer::NoSuchDomain, &DnsAnswer::NoSuchDomain)
        );
        assert_eq!(server.asked(), ["one.example", "two.example"]);
        assert_eq!(dns.recall(&["one.example", "two.example"]), Some(second));
        assert_eq!(dns.recall(&["one.example", "three.example"]), None);
    }

    #[tokio::test]
    async fn domains_that_are_broken_do_not_make_the_resolver_count_as_silent() {
        let server = TestServer::start(|name| match name {
            name if name.starts_with("bad") => TestReply::Failure,
            name if name.starts_with("mute") => TestReply::Nothing,
            _ => TestReply::NoSuchDomain,
        })
        .await;
        let dns = Dns::new(&server.config(PATIENCE)).unwrap();
        let bad = names("bad", 2 * SILENT_AFTER);
        let found = look(&dns, &bad).await;
        assert!(bad.iter().all(|one| *found.of(one) == DnsAnswer::Unknown));
        // Nothing is said of these at all: the resolver is asked about the root, and says something.
        look(&dns, &names("mute", 2 * SILENT_AFTER)).await;
        until("a question about the root", || server.asked().contains(&String::new())).await;
        until("the answer about the root", || !dns.known().silence.is_searched()).await;
        assert_eq!(*dns.look(&["gone.example"]).await.of("gone.example"), DnsAnswer::NoSuchDomain);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_resolver_that_says_nothing_about_the_root() {
        let server = TestServer::start(|_| TestReply::Nothing).await;
        let dns = Dns::new(&server.config(PATIENCE)).unwrap();
        look(&dns, &names("d", SILENT_AFTER)).await;
        assert_eq!(dns.recall(&["new.example"]), None, "that is not known yet");
        until("the silence", || dns.known().silence.is_silent()).await;
        assert_eq!(dns.recall(&["new.example"]).unwrap().of("new.example"), &DnsAnswer::Unknown);
        assert_eq!(*dns.look(&["new.example"]).await.of("new.example"), DnsAnswer::Unknown);
        assert!(!server.asked().contains(&"new.example".to_owned()));
    }

    #[tokio::test]
    async fn no_more_questions_than_there_is_room_for_are_under_way_and_the_rest_waits_for_nothing() {
        let server = TestServer::start(|_| TestReply::Nothing).await;
        let dns = Dns::new(&server.config(PATIENCE)).unwrap();
        let many = names("d", u32::try_from(ASKED_MAX).unwrap());
        let waiting = look(&dns, &many);
        let begin = Instant::now();
        let beyond = async {
            assert_eq!(*dns.look(&["more.example"]).await.of("more.example"), DnsAnswer::Unknown);
            begin.elapsed()
        };
        let (_, waited) = tokio::join!(waiting, beyond);
        assert!(waited < begin.elapsed() / 2, "{waited:?}");
        assert!(!server.asked().contains(&"more.example".to_owned()));
    }
}
