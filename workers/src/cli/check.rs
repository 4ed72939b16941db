//! `postrider check`: is a configuration sound.

mod connect;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use jiff::Timestamp;
use postrider_producer::{embedded::publisher::SCHEME, rabbitmq::address};
use secrecy::ExposeSecret as _;
use url::Url;

use super::{ConfigArguments, documents, output};
use crate::{
    config::{self, Account, Config, Covers, MailboxProviderLimit, Ramp, SesCredentials, Tls, TransportKind},
    policy::rate_limit::rate::Rate,
    store,
    transport::{Transport, smtp::hello_warning},
};

/// Domains of a throttle that are shown.
const DOMAINS_SHOWN: usize = 8;

/// Arguments of `postrider check`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Connect to the queue, the store and each transport, and say who does not answer
    #[arg(long)]
    connect: bool,
    /// Check this file of jobs instead: one document, a list, or lines; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "connect")]
    jobs: Option<PathBuf>,
}

/// Loads the configuration, reads the certificates it names, and says what it came to. Connects to nothing unless it is asked to.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(file) = &arguments.jobs {
        return jobs(file, &arguments.config);
    }
    let config = arguments.config.load()?;
    config.store_is_shared()?;
    output::line(&format!("queue: {}", queue(config.queue.url.expose_secret())?))?;
    output::line(&format!(
        "store: {}",
        store::shown(config.store.url.expose_secret()).context("setting `store.url`")?
    ))?;
    for one in &config.transports {
        if let Err(error) = Transport::new(one) {
            anyhow::bail!("setting `transport.{}`: {error}", one.name);
        }
        let (address, connections, credentials) = match &one.kind {
            TransportKind::Smtp(smtp) => (format!("{}:{}", smtp.host, smtp.port), smtp.connections, String::new()),
            TransportKind::Provider(provider) => {
                (shown(&provider.base_url), provider.http.connections, format!(", {}", credentials(&provider.account)))
            }
        };
        if let TransportKind::Smtp(smtp) = &one.kind
            && let Some(warning) = hello_warning(smtp.hello.as_deref())
        {
            output::remark(&format!("warning: transport {}: {warning}", one.name));
        }
        if let TransportKind::Smtp(smtp) = &one.kind
            && let Some(warning) = port_warning(smtp.port, smtp.tls)
        {
            output::remark(&format!("warning: transport {}: {warning}", one.name));
        }
        let kind = one.kind();
        output::line(&format!(
            "transport {}: {kind} {address}, at most {connections} connections{credentials}",
            one.name
        ))?;
    }
    for route in config.routes.list() {
        let names: Vec<&str> = route.transports().map(|n| config.transports[n].name.as_str()).collect();
        output::line(&format!("route {}: by {}", route.name, names.join(", ")))?;
    }
    output::line(&memory(&config))?;
    for line in limits(&config) {
        output::line(&line)?;
    }
    for warning in config.warnings().into_iter().chain(config::strays(&config::process_environment())) {
        output::remark(&format!("warning: {warning}"));
    }
    if config.routes.is_empty() {
        output::remark("no transport is configured: commands that only publish work, `postrider worker` does not");
    }
    if arguments.connect && !connect::ask_each(&config).await? {
        return Ok(ExitCode::FAILURE);
    }
    output::line("ok")?;
    Ok(ExitCode::SUCCESS)
}

/// Reads each job, renders its templates and makes its message. Says what is wrong with which document.
fn jobs(file: &Path, config: &ConfigArguments) -> anyhow::Result<ExitCode> {
    let mut documents = documents::open(file, config.load_to_look()?.job)?;
    let (mut sound, mut faulty) = (0_u64, 0_u64);
    while let Some(document) = documents.next()? {
        match document.made(Timestamp::now()) {
            Ok(_) => sound += 1,
            Err(reason) => {
                faulty += 1;
                output::line(&format!("line {}: {reason}", document.line))?;
            }
        }
    }
    output::line(&format!("{}, {faulty} with a fault", output::count(sound + faulty, "job")))?;
    Ok(if faulty == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the queue is, as it is read: never with which login.
fn queue(url: &str) -> anyhow::Result<String> {
    if let Some(path) = url.strip_prefix(SCHEME) {
        return Ok(format!("file {path}"));
    }
    let uri = address::parse(url).map_err(anyhow::Error::msg).context("setting `queue.url`")?;
    let at = address::shown(&uri.authority.host, uri.authority.port);
    Ok(format!("{} at {at}, virtual host {}", uri.scheme, uri.vhost.escape_debug()))
}

/// What messages in hand may take.
fn memory(config: &Config) -> String {
    let budget = config.worker.budget();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let source = if config.worker.memory.is_some() { "worker.memory" } else { "found here" };
    let (all, limit, alone) = (mib(budget.all()), mib(budget.limit), mib(budget.side_by_side()));
    format!("memory: {all} for messages in hand, of a limit of {limit} ({source}); jobs above {alone} go one at a time")
}

/// Every limit that the configuration names, and whom it is for.
fn limits(config: &Config) -> Vec<String> {
    let limits = &config.limits;
    let mut lines = Vec::new();
    for (one, pace) in config.transports.iter().zip(&limits.transports) {
        let mut parts = Vec::new();
        if !pace.rates.is_empty() {
            parts.push(rates(&pace.rates));
        }
        if !pace.sender_rates.is_empty() {
            parts.push(format!("{} for each sender's domain", rates(&pace.sender_rates)));
        }
        parts.extend(pace.connections_total.map(|total| format!("at most {total} connections over all workers")));
        if !parts.is_empty() {
            lines.push(format!("limit transport {}: {}", one.name, parts.join("; ")));
        }
    }
    for (name, tenant) in &limits.tenants {
        let rate = rates(tenant.rates.as_ref().unwrap_or(&limits.tenant_rates));
        lines.push(format!("limit tenant {name}: {rate}, weight {}", tenant.weight));
    }
    if !limits.tenant_rates.is_empty() {
        let whom = if limits.tenants.is_empty() { "every tenant" } else { "every other tenant" };
        lines.push(format!("limit {whom}: {}", rates(&limits.tenant_rates)));
    }
    lines.extend(limits.throttles.iter().map(|one| throttle(config, one)));
    lines.extend(config.ramps.iter().map(ramp));
    lines
        .extend(limits.lists.iter().map(|one| format!("list {}: for routes alone: {}", one.name, first(&one.domains))));
    lines
}

/// Where a ramp is.
fn ramp(ramp: &Ramp) -> String {
    let Ramp { setting, step, steps, next } = ramp;
    let next = next.map_or_else(|| "which stays".to_owned(), |at| format!("the next on {at:.0}"));
    format!("ramp {setting}: step {step} of {steps}, {next}")
}

/// What holds for a group without a rate of its own, as a whole.
fn of_others(config: &Config) -> String {
    let rates_of_others = &config.limits.other_rates;
    if rates_of_others.is_empty() {
        "unlimited".to_owned()
    } else {
        format!("{} as for all others", rates(rates_of_others))
    }
}

fn throttle(config: &Config, throttle: &MailboxProviderLimit) -> String {
    let MailboxProviderLimit { name, transport, rates: own, covers } = throttle;
    let rate = if own.is_empty() { of_others(config) } else { rates(own) };
    let list = || members(config, name);
    let whom = match covers {
        Covers::Own => list(),
        Covers::Listed => format!("the domains of [groups] {}", list()),
        Covers::Shipped => format!("the group that ships: {}", list()),
        Covers::Others { .. } => "every other domain, each on its own, and each group without a rate".to_owned(),
    };
    let by = transport.as_ref().map_or_else(String::new, |transport| format!(", by {transport} alone"));
    format!("throttle {name}: {rate}, for {whom}{by}")
}

/// The lists of a group.
fn members(config: &Config, name: &str) -> String {
    let Some(group) = config.limits.groups.0.iter().find(|group| group.name == name) else { return String::new() };
    let mut parts = Vec::new();
    if !group.domains.is_empty() {
        parts.push(first(&group.domains));
    }
    if !group.mx.is_empty() {
        let looks = if config.dns.groups { "" } else { " (which nobody looks at: `dns.groups` is off)" };
        parts.push(format!("mail exchangers {}{looks}", first(&group.mx)));
    }
    parts.join("; ")
}

/// What is to be said of a port that is usually spoken to in another way.
fn port_warning(port: u16, tls: Tls) -> Option<&'static str> {
    match (port, tls) {
        (465, Tls::Starttls | Tls::None) => Some(
            "port 465 is encrypted from the first byte as a rule: with another `tls` than `implicit` no greeting comes",
        ),
        (25 | 587, Tls::Implicit) => Some(
            "ports 25 and 587 greet in clear as a rule: with `tls = \"implicit\"` the handshake fails; use `starttls`",
        ),
        _ => None,
    }
}

fn first(list: &[String]) -> String {
    let shown = list[..list.len().min(DOMAINS_SHOWN)].join(", ");
    let more = list.len().saturating_sub(DOMAINS_SHOWN);
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn rates(rates: &[Rate]) -> String {
    let texts: Vec<String> = rates.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "unlimited".to_owned() } else { texts.join(" and ") }
}

/// Where an API is. What stands behind the host may be a secret of a webhook, and is not shown.
fn shown(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
    if is_bare { origin } else { format!("{origin}/...") }
}

/// Which credentials an account has, never what they are. Those of the configuration are there, or it would not have been loaded.
fn credentials(account: &Account) -> String {
    match account {
        Account::Ses(ses) => match &ses.credentials {
            SesCredentials::Static { session_token: None, .. } => "access key is there".to_owned(),
            SesCredentials::Static { session_token: Some(_), .. } => {
                "access key and session token are there".to_owned()
            }
            SesCredentials::WebIdentity { token_file, .. } => match std::fs::File::open(token_file) {
                Ok(_) => format!("token file {} is there", token_file.display()),
                // Often right: the file is where the workers run.
                Err(error) => format!("token file {} cannot be read here: {error}", token_file.display()),
            },
        },
        Account::Webhook(_) => "signing secret is there".to_owned(),
        Account::Mailjet(_) => "API key and secret key are there".to_owned(),
        _ => "API key is there".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_spoken_to_in_the_wrong_way_is_warned_of() {
        assert!(port_warning(465, Tls::Starttls).is_some_and(|text| text.contains("implicit")));
        assert!(port_warning(587, Tls::Implicit).is_some_and(|text| text.contains("starttls")));
        for (port, tls) in [(465, Tls::Implicit), (587, Tls::Starttls), (25, Tls::None), (2525, Tls::Implicit)] {
            assert_eq!(port_warning(port, tls), None);
        }
    }
}
