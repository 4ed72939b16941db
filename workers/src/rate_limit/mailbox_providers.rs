//! What DNS says of the domains of a job's recipients, and the groups that follow. One look serves a whole attempt: who decides about groups or
//! recipients reads it, and waits for nothing.

use std::sync::Arc;

use postrider_schemas::Job;

use super::Limiter;
use crate::{
    config::LimitsConfig,
    dns::{Dns, DnsAnswer, DomainAnswers},
    policy::mailbox_provider::{MailboxProviders, MxHosts},
    telemetry::traces,
};

impl Limiter {
    /// What DNS says of the domains of these recipients, as far as it is of use; after one patience at most, asked side by side. `checks`: the
    /// recipients may be refused for it.
    pub async fn domains(&self, job: &Job, indices: &[usize], checks: bool) -> DomainAnswers {
        let domains = self.of_use(job, indices, checks);
        if let Some(known) = self.0.dns.recall(&domains) {
            return known;
        }
        let _waiting = traces::waiting("dns");
        self.0.dns.look(&domains).await
    }

    /// The same where nobody has to be waited for; nothing where somebody has.
    pub fn domains_at_hand(&self, job: &Job, indices: &[usize]) -> Option<DomainAnswers> {
        self.0.dns.recall(&self.of_use(job, indices, true))
    }

    fn of_use<'a>(&self, job: &'a Job, indices: &[usize], checks: bool) -> Vec<&'a str> {
        let groups = self.0.groups_by_dns.then_some(&self.0.config.groups);
        of_use(&domains(job, indices), groups, checks && self.0.checks_recipients)
    }

    /// The groups of these recipients, each once.
    pub fn mailbox_providers(&self, job: &Job, indices: &[usize], known: &DomainAnswers) -> Vec<String> {
        groups(&self.0.config, self.0.groups_by_dns, &domains(job, indices), known)
    }

    /// The group of a domain.
    pub(super) fn group(&self, domain: &str, known: &DomainAnswers) -> String {
        group(&self.0.config, self.0.groups_by_dns, domain, known)
    }
}

/// The groups of these recipients as a worker with this configuration finds them, each once, and the domains of which DNS did not tell. It is waited for
/// once, for its patience at most; without it the lists alone tell.
pub async fn mailbox_providers_of(
    config: &LimitsConfig,
    job: &Job,
    indices: &[usize],
    dns: Option<&Arc<Dns>>,
) -> (Vec<String>, Vec<String>) {
    let domains = domains(job, indices);
    let wanted = of_use(&domains, dns.map(|_| &config.groups), false);
    let known = match dns {
        Some(dns) => dns.look(&wanted).await,
        None => DomainAnswers::default(),
    };
    let silent = wanted.into_iter().filter(|domain| *known.of(domain) == DnsAnswer::Unknown).map(str::to_owned);
    (groups(config, dns.is_some(), &domains, &known), silent.collect())
}

/// The domains of these recipients, each once.
fn domains<'a>(job: &'a Job, indices: &[usize]) -> Vec<&'a str> {
    let all = job.recipients();
    let mut domains = Vec::new();
    for recipient in indices.iter().filter_map(|index| all.get(*index)) {
        let domain = recipient.address.domain().as_str();
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    domains
}

/// Those of which an answer is of use: all where recipients are checked, else those that no list has in a group.
fn of_use<'a>(domains: &[&'a str], groups: Option<&MailboxProviders>, checks: bool) -> Vec<&'a str> {
    let is_of_use = |domain: &str| checks || groups.is_some_and(|groups| groups.needs_exchangers(domain));
    domains.iter().copied().filter(|domain| is_of_use(domain)).collect()
}

fn groups(config: &LimitsConfig, by_dns: bool, domains: &[&str], known: &DomainAnswers) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for domain in domains {
        let group = group(config, by_dns, domain, known);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// The group of a domain: by the lists, by its mail exchangers, else itself.
fn group(config: &LimitsConfig, by_dns: bool, domain: &str, known: &DomainAnswers) -> String {
    let exchangers = match known.of(domain) {
        DnsAnswer::Exchangers(names) if by_dns => MxHosts::Names(names),
        _ => MxHosts::Unknown,
    };
    config.groups.find(domain, exchangers).map_or_else(|| domain.to_owned(), |group| group.name.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postrider_schemas::{JobLimits, JobV1};

    use super::*;
    use crate::{
        config::{Config, load_text},
        dns::test_server::{TestReply, TestServer},
        policy::outcome::{Class, Outcome, RecipientRefusal, Refusal, Stage},
        rate_limit::Subject,
        store::{Store, StoreOptions},
    };

    const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                          [[throttle]]\nname = \"provider\"\ndomains = [\"provider.test\"]\nmx = [\".provider.test\"]\n\
                          [[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

    fn job(domains: &[&str]) -> Job {
        let to = domains.iter().map(|domain| format!("customer@{domain}").as_str().into()).collect();
        let job = JobV1 { from: "shop@shop.example".into(), to, text: Some("Hello".to_owned()), ..JobV1::default() };
        job.parse(&JobLimits::DEFAULT).unwrap()
    }

    async fn server() -> TestServer {
        let script = |name: &str| match name {
            "shop.test" | "books.test" => TestReply::Exchanger(b"\x02mx\x08provider\x04test\x00"),
            "gone.test" => TestReply::NoSuchDomain,
            _ => TestReply::Failure,
        };
        TestServer::start(script).await
    }

    fn config(server: &TestServer, groups: bool, check: bool) -> Config {
        let mut config = load_text(CONFIG).unwrap();
        config.dns = crate::config::DnsConfig { groups, check, ..server.config(Duration::from_secs(10)) };
        config
    }

    async fn limiter(config: &Config) -> (Limiter, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}", folder.path().join("store.db").display());
        let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
        (Limiter::new(config, store).unwrap(), folder)
    }

    #[tokio::test]
    async fn one_look_serves_the_groups_and_the_check_of_recipients() {
        let server = server().await;
        let (limiter, _folder) = limiter(&config(&server, true, true)).await;
        let job = job(&["shop.test", "gone.test", "provider.test", "broken.test", "books.test"]);
        let all = [0, 1, 2, 3, 4];
        assert_eq!(limiter.domains_at_hand(&job, &all), None);
        let known = limiter.domains(&job, &all, true).await;
        let asked = ["books.test", "broken.test", "gone.test", "provider.test", "shop.test"];
        assert_eq!(server.asked(), asked);
        assert_eq!(limiter.mailbox_providers(&job, &[0, 2, 3, 4], &known), ["provider", "broken.test"]);
        let unreachable: Vec<usize> = limiter.unreachable(&job, &all, &known).iter().map(|one| one.index).collect();
        assert_eq!(unreachable, [1]);
        assert_eq!(limiter.domains_at_hand(&job, &all), Some(known));
    }

    #[tokio::test]
    async fn only_what_is_of_use_is_asked() {
        let server = server().await;
        let of = ["shop.test", "gone.test", "provider.test"];
        let (by_groups, _folder) = limiter(&config(&server, true, false)).await;
        let known = by_groups.domains(&job(&of), &[0, 1, 2], true).await;
        assert_eq!(server.asked(), ["gone.test", "shop.test"], "the list knows one");
        assert!(by_groups.unreachable(&job(&of), &[0, 1, 2], &known).is_empty(), "recipients are not checked");
        let (by_check, _other) = limiter(&config(&server, false, true)).await;
        let known = by_check.domains(&job(&["books.test"]), &[0], true).await;
        assert_eq!(
            by_check.mailbox_providers(&job(&["books.test"]), &[0], &known),
            ["books.test"],
            "groups are by the lists"
        );
        let repeated = by_check.domains(&job(&["broken.test"]), &[0], false).await;
        assert_eq!((repeated, server.asked().contains(&"broken.test".to_owned())), (DomainAnswers::default(), false));
        let (without, _third) = limiter(&config(&server, false, false)).await;
        assert_eq!(without.domains_at_hand(&job(&["books.test"]), &[0]), Some(DomainAnswers::default()));
    }

    #[tokio::test]
    async fn groups_are_found_as_a_worker_finds_them() {
        let server = server().await;
        let job = job(&["shop.test", "books.test", "broken.test"]);
        let config = config(&server, true, false);
        let dns = Dns::new(&config.dns).unwrap();
        let (found, silent) = mailbox_providers_of(&config.limits, &job, &[0, 1, 2], Some(&dns)).await;
        assert_eq!(
            (found, silent),
            (vec!["provider".to_owned(), "broken.test".to_owned()], vec!["broken.test".to_owned()])
        );
        let (found, silent) = mailbox_providers_of(&config.limits, &job, &[0, 2], None).await;
        assert_eq!((found, silent), (vec!["shop.test".to_owned(), "broken.test".to_owned()], Vec::new()));
    }

    #[tokio::test]
    async fn what_a_refused_recipient_slows_down_was_known_before_it_was_tried() {
        let server = server().await;
        let (limiter, _folder) = limiter(&config(&server, true, true)).await;
        let job = job(&["shop.test", "broken.test"]);
        let known: DomainAnswers =
            [("shop.test", DnsAnswer::Exchangers(["mx.provider.test.".to_owned()].into()))].into_iter().collect();
        let groups = limiter.mailbox_providers(&job, &[0, 1], &known);
        let answer = crate::policy::outcome::Answer::new(Stage::RcptTo, Some(421), None, "sending too fast");
        let refusal = Refusal { class: Class::Throttled, answer, retry_after: Some(Duration::from_secs(60)) };
        let recipients = vec![RecipientRefusal { index: 0, refusal: refusal.clone() }];
        let subject = Subject { job: &job, transport: 0, groups: &groups, domains: &known, fresh: true, hold: true };
        limiter.heard(subject, &Outcome::Refused { refusal, recipients }).await;
        assert!(limiter.overrides().contains("group:relay:provider"));
        assert_eq!(server.asked(), [""; 0], "nobody was asked");
    }
}
