//! What a message is counted against: its transport, each group of its recipients there, its tenant, and its sender's domain where that is
//! limited. The names of scopes are what operators see and type.

use postrider_schemas::{Job, Tenant, address::Domain};

use super::{Limiter, Subject};
use crate::{
    config::LimitsConfig,
    policy::{
        mailbox_provider::MxHosts,
        rate_limit::{
            rate::Rate,
            scope::{Limit, ScopeLimits},
        },
    },
};

/// The scope of a transport.
pub fn transport(name: &str) -> String {
    format!("transport:{name}")
}

/// The scope of a group at a transport.
pub fn group(transport: &str, group: &str) -> String {
    format!("group:{transport}:{group}")
}

/// The scope of a sender's domain at a transport.
fn sender(transport: &str, domain: &str) -> String {
    format!("sender:{transport}:{domain}")
}

fn demand(scope: String, rates: &[Rate]) -> ScopeLimits {
    ScopeLimits { scope, limits: rates.iter().map(Limit::from).collect() }
}

/// The scopes of a job at a transport, the widest first, with what is configured for them.
pub fn of(
    config: &LimitsConfig,
    position: usize,
    name: &str,
    job: &Job,
    groups: &[String],
) -> Vec<(String, Vec<Rate>)> {
    let limits = &config.transports[position];
    let mut scopes = vec![(transport(name), limits.rates.clone())];
    for one in groups {
        scopes.push((group(name, one), config.rates_of(name, one).to_vec()));
    }
    let tenant = job.tenant().as_str();
    let own = config.tenants.get(tenant).and_then(|one| one.rates.as_ref());
    scopes.push((format!("tenant:{tenant}"), own.unwrap_or(&config.tenant_rates).clone()));
    if !limits.sender_rates.is_empty() {
        let domain = job.from().address().domain().as_str();
        scopes.push((sender(name, domain), limits.sender_rates.clone()));
    }
    scopes
}

impl Limiter {
    /// The scopes of an attempt, the widest first.
    pub(super) fn demands(&self, subject: Subject<'_>) -> Vec<ScopeLimits> {
        let name = &self.0.transports[subject.transport];
        let scopes = of(&self.0.config, subject.transport, name, subject.job, subject.groups);
        scopes.into_iter().map(|(scope, rates)| demand(scope, &rates)).collect()
    }

    /// The configured rates of a scope by its name, for operators; none where the configuration knows none.
    pub fn configured(&self, scope: &str) -> Vec<Rate> {
        let config = &self.0.config;
        let of_transport = |name: &str| {
            let position = self.0.transports.iter().position(|one| one == name);
            position.map(|n| &config.transports[n])
        };
        let rates = match scope.split_once(':') {
            Some(("transport", name)) => of_transport(name).map(|limits| limits.rates.clone()),
            Some(("group", rest)) => {
                rest.split_once(':').map(|(transport, name)| config.rates_of(transport, name).to_vec())
            }
            Some(("tenant", name)) => {
                let own = config.tenants.get(name).and_then(|one| one.rates.clone());
                Some(own.unwrap_or_else(|| config.tenant_rates.clone()))
            }
            Some(("sender", rest)) => {
                rest.split_once(':').and_then(|(name, _)| of_transport(name)).map(|limits| limits.sender_rates.clone())
            }
            _ => None,
        };
        rates.unwrap_or_default()
    }

    /// The scope that is meant, as attempts ask for it; why where none ever does.
    pub fn scope(&self, text: &str) -> Result<String, String> {
        let none = || {
            format!(
                "`{text}` is no scope of this configuration: transport:NAME, group:TRANSPORT:GROUP, tenant:NAME or sender:TRANSPORT:DOMAIN, where a group \
                 has a name of the lists (such as google), of a [[throttle]] that names domains or mx, or is a domain"
            )
        };
        let transport = |name: &str| {
            let position = self.0.transports.iter().position(|one| one == name);
            position.map(|n| &self.0.config.transports[n]).ok_or_else(none)
        };
        let domain = |name: &str| {
            if !name.contains('.') {
                return Err(none());
            }
            Domain::parse(name).map_err(|error| format!("`{text}`: `{name}`: {error}"))
        };
        let (kind, rest) = text.split_once(':').ok_or_else(none)?;
        let at_transport = || rest.split_once(':').ok_or_else(none);
        match kind {
            "transport" => transport(rest).map(|_| text.to_owned()),
            "group" => {
                let (at, name) = at_transport()?;
                transport(at)?;
                let groups = &self.0.config.groups;
                if groups.0.iter().any(|one| one.name == name) {
                    return Ok(text.to_owned());
                }
                let domain = domain(name)?;
                match groups.find(domain.as_str(), MxHosts::Unknown) {
                    Some(one) => Err(format!(
                        "`{text}`: {domain} belongs to the group `{}`, and no mail asks for it alone: the scope is {}",
                        one.name,
                        group(at, &one.name)
                    )),
                    None => Ok(group(at, domain.as_str())),
                }
            }
            "sender" => {
                let (at, name) = at_transport()?;
                if transport(at)?.sender_rates.is_empty() {
                    return Err(format!(
                        "`{text}`: the transport `{at}` has no sender_rate, so no mail asks for its senders"
                    ));
                }
                Ok(sender(at, domain(name)?.as_str()))
            }
            "tenant" => match Tenant::parse(rest) {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err(format!("`{text}`: {error}")),
            },
            _ => Err(none()),
        }
    }

    /// The tenant's weight among others that wait.
    pub fn weight(&self, tenant: &Tenant) -> f64 {
        self.0.config.tenants.get(tenant.as_str()).map_or(1.0, |one| one.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::load_text,
        store::{Store, StoreOptions},
    };

    #[tokio::test]
    async fn a_scope_is_one_that_mail_asks_for_or_the_reason_is_told_why_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}", folder.path().join("store.db").display());
        let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
        let config = "[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                      [transport.spare]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nsender_rate = \"1/s\"\n\
                      [groups]\nuniversities = [\".edu\"]\n[[throttle]]\nname = \"universities\"\n[[throttle]]\nname = \"others\"\nrate = \"1/s\"\n\
                      [[route]]\nname = \"all\"\nsend = [\"relay\", \"spare\"]\n";
        let limiter = Limiter::new(&load_text(config).unwrap(), store).unwrap();
        let same = |text: &str| assert_eq!(limiter.scope(text).as_deref(), Ok(text));
        same("transport:relay");
        same("group:relay:google");
        same("group:relay:universities");
        same("group:relay:foo.example");
        same("tenant:shop");
        same("sender:spare:shop.example");
        let read_as = |text: &str, scope: &str| assert_eq!(limiter.scope(text).as_deref(), Ok(scope));
        read_as("group:relay:m\u{fc}ller.example", "group:relay:xn--mller-kva.example");
        read_as("group:relay:Foo.Example", "group:relay:foo.example");
        read_as("sender:spare:M\u{fc}ller.example", "sender:spare:xn--mller-kva.example");
        let refused = |text: &str, expected: &str| {
            let error = limiter.scope(text).unwrap_err();
            assert!(error.contains(text) && error.contains(expected), "{error}");
        };
        refused(
            "group:relay:gmail.com",
            "the group `google`, and no mail asks for it alone: the scope is group:relay:google",
        );
        refused("group:relay:Gmail.com", "group:relay:google");
        refused("group:relay:mit.edu", "group:relay:universities");
        refused("group:relay:foo.", "`foo.`");
        refused("group:relay:a..b", "`a..b`");
        refused("group:relay:others", "of a [[throttle]] that names domains or mx");
        refused("group:nobody:google", "no scope of this configuration");
        refused("sender:relay:shop.example", "`relay` has no sender_rate");
        refused("sender:nobody:shop.example", "no scope of this configuration");
        refused("tenant:A B", "`tenant:A B`");
        refused("relay", "no scope of this configuration");
    }
}
