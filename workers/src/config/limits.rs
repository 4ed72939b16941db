//! Limits in the configuration: as they are written, and checked. Rates of transports stand in the transports' own tables, beside whatever their
//! kind wants there.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use postrider_schemas::Tenant;
use serde::Deserialize;

use super::{
    ConfigError, TransportConfig, TransportKind,
    names::{ScopeNames, distinct, one},
    reading::{self, one_rate, rates, some_rates},
    shaping_rules::{self, ShapingRuleSettings},
    transport_limits::{self, GroupLimits, GroupRatesAt, MailboxProviderLimit, MailboxProviderLimitSettings},
};
use crate::policy::{
    mailbox_provider::{MailboxProvider, MailboxProviders},
    rate_limit::{rate::Rate, shaping_rule::ShapingRule},
};

/// How fast mail may go.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Of each tenant that has none of its own.
    pub tenant_rates: Vec<Rate>,
    /// By name.
    pub tenants: BTreeMap<String, TenantLimits>,
    /// Throttles as they were written, each with what it came to cover.
    pub throttles: Vec<MailboxProviderLimit>,
    /// Mailbox providers: those with a throttle, then the others that ship.
    pub groups: MailboxProviders,
    /// Lists of `[groups]` that only routes use: limits know their domains by other groups.
    pub lists: Vec<MailboxProvider>,
    /// Rates of groups at each transport, by the group's name.
    pub group_rates: BTreeMap<String, Vec<Rate>>,
    /// Of each domain that is in no group with a rate.
    pub other_rates: Vec<Rate>,
    /// The same for single transports, by their names.
    pub rates_at: BTreeMap<String, GroupRatesAt>,
    /// Of transports, in their order.
    pub transports: Vec<TransportLimits>,
    /// The configured ones, then those that ship.
    pub shaping_rules: Vec<ShapingRule>,
    /// Messages a second above which workers take tokens in batches.
    pub lease_above: f64,
    /// How long transactional mail goes on with a share of the limits while the store is away.
    pub alone: Duration,
}

impl LimitsConfig {
    /// The rates of a group at a transport: those for this transport go before those for every one, and those of the group before those of all others.
    pub fn rates_of(&self, transport: &str, group: &str) -> &[Rate] {
        let here = self.rates_at.get(transport);
        here.and_then(|here| here.groups.get(group))
            .or_else(|| self.group_rates.get(group))
            .or_else(|| here.and_then(|here| here.others.as_ref()))
            .unwrap_or(&self.other_rates)
    }
}

/// A tenant's.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantLimits {
    /// Its rates; the default where absent.
    pub rates: Option<Vec<Rate>>,
    /// Its weight among others that wait.
    pub weight: f64,
}

/// A transport's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TransportLimits {
    /// Its rates.
    pub rates: Vec<Rate>,
    /// Rates of each sender's domain at it.
    pub sender_rates: Vec<Rate>,
    /// Most connections over all workers.
    pub connections_total: Option<usize>,
}

/// What is asked of DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Look for the group of a domain by its mail exchangers.
    pub groups: bool,
    /// Refuse domains that do not exist or say that they take no mail.
    pub check: bool,
    /// Resolvers; the system's where empty.
    pub servers: Vec<SocketAddr>,
    /// Longest wait for an answer.
    pub patience: Duration,
}

#[derive(Deserialize)]
pub(super) struct LimitsSettings {
    #[serde(deserialize_with = "rates")]
    tenant_rate: Vec<Rate>,
    #[serde(deserialize_with = "one_rate")]
    lease_above: Rate,
    #[serde(deserialize_with = "reading::duration")]
    alone: Duration,
    #[serde(default)]
    tenants: BTreeMap<String, TenantSettings>,
    /// Read before; here so that it is known.
    #[serde(default, rename = "tenants_folder")]
    _tenants_folder: Option<String>,
}

#[derive(Deserialize)]
struct TenantSettings {
    #[serde(default, deserialize_with = "some_rates")]
    rate: Option<Vec<Rate>>,
    #[serde(default = "one")]
    weight: f64,
}

#[derive(Deserialize)]
pub(super) struct DnsSettings {
    groups: bool,
    check: bool,
    #[serde(deserialize_with = "reading::texts")]
    servers: Vec<String>,
    #[serde(deserialize_with = "reading::duration")]
    patience: Duration,
}

/// The settings of a transport that are the same for every kind.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct PaceSettings {
    #[serde(deserialize_with = "rates")]
    rate: Vec<Rate>,
    #[serde(deserialize_with = "rates")]
    sender_rate: Vec<Rate>,
    connections_total: Option<usize>,
}

/// Names of [`PaceSettings`], which the kinds do not know.
pub(super) const PACE_KEYS: [&str; 3] = ["rate", "sender_rate", "connections_total"];

pub(super) fn check(
    limits: LimitsSettings,
    throttles: Vec<MailboxProviderLimitSettings>,
    shaping_rules: Vec<ShapingRuleSettings>,
    mut paces: BTreeMap<String, PaceSettings>,
    names: &ScopeNames<'_>,
) -> Result<LimitsConfig, ConfigError> {
    let mut tenants = BTreeMap::new();
    for (name, settings) in limits.tenants {
        let at = format!("limits.tenants.{name}");
        Tenant::parse(&name).map_err(|error| ConfigError::value(&at, error))?;
        if !(0.01..=1000.0).contains(&settings.weight) {
            return Err(ConfigError::value(format!("{at}.weight"), "must be from 0.01 to 1000"));
        }
        if let Some(rates) = &settings.rate {
            distinct(&format!("{at}.rate"), rates)?;
        }
        tenants.insert(name, TenantLimits { rates: settings.rate, weight: settings.weight });
    }
    distinct("limits.tenant_rate", &limits.tenant_rate)?;
    let GroupLimits { throttles, groups, group_rates, other_rates, rates_at, lists } =
        transport_limits::check(throttles, names)?;
    let mut transports = Vec::new();
    for TransportConfig { name, kind } in names.transports {
        let settings = paces.remove(name).unwrap_or_default();
        distinct(&format!("transport.{name}.rate"), &settings.rate)?;
        distinct(&format!("transport.{name}.sender_rate"), &settings.sender_rate)?;
        if let Some(total) = settings.connections_total {
            let wrong = |reason: &str| Err(ConfigError::value(format!("transport.{name}.connections_total"), reason));
            match kind {
                TransportKind::Smtp(_) if total == 0 => return wrong("must be at least 1"),
                TransportKind::Smtp(_) => {}
                TransportKind::Provider(_) => {
                    return wrong(
                        "is for SMTP relays: a Web API has `connections` for each worker, and `rate` over all of them",
                    );
                }
            }
        }
        transports.push(TransportLimits {
            rates: settings.rate,
            sender_rates: settings.sender_rate,
            connections_total: settings.connections_total,
        });
    }
    let shaping_rules = shaping_rules::check(shaping_rules, names, &groups)?;
    Ok(LimitsConfig {
        tenant_rates: limits.tenant_rate,
        tenants,
        throttles,
        groups,
        lists,
        group_rates,
        other_rates,
        rates_at,
        transports,
        shaping_rules,
        lease_above: limits.lease_above.per_second(),
        alone: limits.alone,
    })
}

pub(super) fn dns(settings: DnsSettings) -> Result<DnsConfig, ConfigError> {
    let address = |text: &String| {
        let with_port = text.parse().or_else(|_| text.parse().map(|host| SocketAddr::new(host, 53)));
        with_port.map_err(|_| {
            ConfigError::value(
                "dns.servers",
                format!("`{text}`: expected an address such as 127.0.0.1 or 127.0.0.1:53"),
            )
        })
    };
    Ok(DnsConfig {
        groups: settings.groups,
        check: settings.check,
        servers: settings.servers.iter().map(address).collect::<Result<_, _>>()?,
        patience: settings.patience,
    })
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
