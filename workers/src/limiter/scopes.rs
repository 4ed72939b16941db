//! What a message is counted against: its transport, each group of its recipients there, its tenant, and its sender's domain where that is
//! limited. The names of scopes are what operators see and type.

use postrider_schemas::{Job, Tenant};

use super::{Limiter, Subject};
use crate::{
    config::LimitsConfig,
    decide::limits::{
        rate::Rate,
        scope::{Demand, Limit},
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

fn demand(scope: String, rates: &[Rate]) -> Demand {
    Demand { scope, limits: rates.iter().map(Limit::from).collect() }
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
        let rates = config.group_rates.get(one).unwrap_or(&config.other_rates);
        scopes.push((group(name, one), rates.clone()));
    }
    let tenant = job.tenant().as_str();
    let own = config.tenants.get(tenant).and_then(|one| one.rates.as_ref());
    scopes.push((format!("tenant:{tenant}"), own.unwrap_or(&config.tenant_rates).clone()));
    if !limits.sender_rates.is_empty() {
        let domain = job.from().address().domain().as_str();
        scopes.push((format!("sender:{name}:{domain}"), limits.sender_rates.clone()));
    }
    scopes
}

impl Limiter {
    /// The scopes of an attempt, the widest first.
    pub(super) fn demands(&self, subject: Subject<'_>) -> Vec<Demand> {
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
            Some(("group", rest)) => rest
                .split_once(':')
                .map(|(_, name)| config.group_rates.get(name).unwrap_or(&config.other_rates).clone()),
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

    /// Whether a name is that of a scope which attempts may ask for.
    pub fn knows(&self, scope: &str) -> bool {
        let transport = |name: &str| self.0.transports.iter().any(|one| one == name);
        match scope.split_once(':') {
            Some(("transport", name)) => transport(name),
            // A group is one of the lists, or a domain.
            Some(("group", rest)) => rest.split_once(':').is_some_and(|(name, group)| {
                let is_listed = self.0.config.groups.0.iter().any(|one| one.name == group);
                transport(name) && (is_listed || group.contains('.'))
            }),
            Some(("sender", rest)) => {
                rest.split_once(':').is_some_and(|(name, domain)| transport(name) && domain.contains('.'))
            }
            Some(("tenant", name)) => Tenant::parse(name).is_ok(),
            _ => false,
        }
    }

    /// The tenant's weight among others that wait.
    pub fn weight(&self, tenant: &Tenant) -> f64 {
        self.0.config.tenants.get(tenant.as_str()).map_or(1.0, |one| one.weight)
    }
}
