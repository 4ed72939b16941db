//! Which limits apply to a job, and with `--now` what they would tell an attempt at this moment: the store's states, decided on by the rule that
//! workers ask, over copies, so that nothing is charged.

use postrider_schemas::{Job, Lane};
use serde::Serialize;

use crate::{
    cli::{
        output,
        status::{self, transports::TransportStatus},
    },
    config::Config,
    delivery::context,
    dns::Dns,
    policy::{
        explain::Explanation,
        rate_limit::{
            admit::{Admission, AdmissionRequest, admit},
            rate::Rate,
            scope::{Limit, Scope, ScopeLimits},
            scope_view::scope_view,
        },
    },
    rate_limit::{mailbox_providers::mailbox_providers_of, scopes},
    store::limiter::Overview,
};

/// What is told of limits.
pub(super) struct LimitForecasts {
    /// Each scope once.
    pub(super) limits: Vec<AppliedLimit>,
    /// Each transport of each part; nothing where the store was not asked.
    pub(super) waits: Vec<Forecast>,
    /// How each transport does now that may be tried.
    pub(super) transports: Vec<TransportStatus>,
    /// Domains of which DNS was asked, and told nothing.
    pub(super) silent: Vec<String>,
}

/// A limit that applies to the job.
#[derive(Debug, Serialize)]
pub(super) struct AppliedLimit {
    scope: String,
    configured: Vec<String>,
    /// The store was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<ScopeState>,
}

/// What the store says of it.
#[derive(Debug, Serialize)]
struct ScopeState {
    per_second: Option<f64>,
    /// For as long would this limit alone make the job wait.
    wait_s: f64,
    wait_at_least: bool,
    why: Option<String>,
}

/// What an attempt by a transport would be told.
#[derive(Debug, Serialize)]
pub(super) struct Forecast {
    /// The part, from 1.
    part: usize,
    transport: String,
    /// `go`: it waits in the worker, if at all. `park`: it is deferred until its slot. `full`: `on_limit` of the route says what follows.
    answer: &'static str,
    wait_s: f64,
    /// The line does not reach that far: the job asks again before, and may have to wait longer.
    wait_at_least: bool,
    /// The limit that is in the way.
    scope: Option<String>,
    on_limit: &'static str,
}

/// A transport of a part, with what the job would be counted against there.
struct ForecastTransport<'a> {
    part: usize,
    transport: &'a str,
    on_limit: &'static str,
    scopes: Vec<(String, Vec<Rate>)>,
}

/// Looks at every transport that may be tried. Without `now` nobody is asked: groups are those of the lists.
pub(super) async fn look(
    config: &Config,
    job: &Job,
    explanation: &Explanation,
    now: bool,
) -> anyhow::Result<LimitForecasts> {
    let dns = if now && config.dns.groups { Some(Dns::new(&config.dns)?) } else { None };
    let (mut ways, mut silent) = (Vec::new(), Vec::new());
    for (n, part) in explanation.parts.iter().enumerate() {
        let indices: Vec<usize> = part.indices.iter().copied().map(usize::from).collect();
        let (groups, more) = mailbox_providers_of(&config.limits, job, &indices, dns.as_ref()).await;
        silent.extend(more);
        for one in part.transports.iter().filter(|one| one.ruled_out.is_none()) {
            let transport = one.transport.as_str();
            let Some(position) = config.transports.iter().position(|known| known.name == transport) else { continue };
            let scopes = scopes::of(&config.limits, position, transport, job, &groups);
            ways.push(ForecastTransport { part: n + 1, transport, on_limit: part.on_limit, scopes });
        }
    }
    silent.sort_unstable();
    silent.dedup();
    let overview = if now { shown_or_said("present waits", overview(config, &ways).await) } else { None };
    let mut transports = if now { shown_or_said("how transports do", statuses(config).await) } else { None };
    if let Some(list) = &mut transports {
        list.retain(|one| ways.iter().any(|way| way.transport == one.transport));
    }
    let mut limits: Vec<AppliedLimit> = Vec::new();
    for way in &ways {
        for one in &way.scopes {
            if !limits.iter().any(|known| known.scope == one.0) {
                limits.push(applies(config, job, way, one, overview.as_ref()));
            }
        }
    }
    let waits =
        overview.iter().flat_map(|overview| ways.iter().map(|way| forecast(config, job, way, &way.scopes, overview)));
    Ok(LimitForecasts { waits: waits.collect(), limits, transports: transports.unwrap_or_default(), silent })
}

/// Without the store the rest of the answer is still worth showing.
fn shown_or_said<T>(what: &str, found: anyhow::Result<T>) -> Option<T> {
    found.inspect_err(|error| output::remark(&format!("not known: {what}: {error:#}"))).ok()
}

/// Each transport: its circuit, and whether it accepts what it is asked to take.
async fn statuses(config: &Config) -> anyhow::Result<Vec<TransportStatus>> {
    let store = context::existing_store(config).await?;
    Ok(status::transports_now(config, &store).await?)
}

/// One look at all of these scopes, with their buckets and lines.
async fn overview(config: &Config, ways: &[ForecastTransport<'_>]) -> anyhow::Result<Overview> {
    let mut names: Vec<String> = ways.iter().flat_map(|way| &way.scopes).map(|(scope, _)| scope.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let store = context::existing_store(config).await?;
    Ok(store.overview(Some(&names)).await?)
}

fn applies(
    config: &Config,
    job: &Job,
    way: &ForecastTransport<'_>,
    one: &(String, Vec<Rate>),
    overview: Option<&Overview>,
) -> AppliedLimit {
    let (scope, rates) = one;
    let now = overview.map(|overview| {
        let limits: Vec<Limit> = rates.iter().map(Limit::from).collect();
        let drawn = scope_view(&state(overview, scope), &limits, overview.now);
        let wait = forecast(config, job, way, std::slice::from_ref(one), overview);
        ScopeState {
            per_second: drawn.per_second,
            wait_s: wait.wait_s,
            wait_at_least: wait.wait_at_least,
            why: drawn.why,
        }
    });
    AppliedLimit { scope: scope.clone(), configured: rates.iter().map(ToString::to_string).collect(), now }
}

/// What a first attempt would be told by these scopes.
fn forecast(
    config: &Config,
    job: &Job,
    way: &ForecastTransport<'_>,
    scopes: &[(String, Vec<Rate>)],
    overview: &Overview,
) -> Forecast {
    let demand = |(scope, rates): &(String, Vec<Rate>)| ScopeLimits {
        scope: scope.clone(),
        limits: rates.iter().map(Limit::from).collect(),
    };
    let demands: Vec<ScopeLimits> = scopes.iter().map(demand).collect();
    let mut states: Vec<Scope> = demands.iter().map(|one| state(overview, &one.scope)).collect();
    let tenant = job.tenant().as_str();
    let weight = config.limits.tenants.get(tenant).map_or(1.0, |one| one.weight);
    let ask = AdmissionRequest {
        weight,
        queue: way.on_limit == "wait",
        ..AdmissionRequest::fresh(demands, job.lane(), tenant)
    };
    let (answer, wait_us, wait_at_least, scope) = match admit(&mut states, &ask, overview.now) {
        Admission::Free => ("go", 0.0, false, None),
        Admission::Go { wait_us, .. } => ("go", wait_us, false, None),
        Admission::Park { park_us, slot_us, scope } => ("park", slot_us, slot_us > park_us, Some(scope)),
        Admission::Full { wait_us, scope } => ("full", wait_us, false, Some(scope)),
    };
    let name = scope.and_then(|n| Some(scopes.get(n)?.0.clone()));
    // Transactional mail that waits for the same goes before bulk mail.
    let before_us = match (job.lane(), scope.and_then(|n| scopes.get(n))) {
        (Lane::Bulk, Some((scope, rates))) => other_lane_us(&state(overview, scope), rates, overview.now),
        _ => 0.0,
    };
    let (wait_us, scope) = (wait_us + before_us, name);
    let (part, transport, on_limit) = (way.part, way.transport.to_owned(), way.on_limit);
    Forecast { part, transport, answer, wait_s: wait_us / 1e6, wait_at_least, scope, on_limit }
}

/// How long those of the transactional lane take that wait for a scope.
fn other_lane_us(scope: &Scope, rates: &[Rate], now: f64) -> f64 {
    let limits: Vec<Limit> = rates.iter().map(Limit::from).collect();
    let lines = scope.lines.iter().filter(|(lane, _)| lane.as_str() == Lane::Transactional.as_str());
    let alone = Scope { lines: lines.map(|(lane, line)| (lane.clone(), line.clone())).collect(), ..scope.clone() };
    let drawn = scope_view(&alone, &limits, now);
    if drawn.tenants > 0 { drawn.last_slot_s * 1e6 } else { 0.0 }
}

fn state(overview: &Overview, scope: &str) -> Scope {
    let known = overview.scopes.iter().find(|(name, _)| name == scope);
    known.map(|(_, state)| state.clone()).unwrap_or_default()
}

/// For people.
pub(super) fn print(told: &LimitForecasts) -> std::io::Result<()> {
    output::lines(["", "limits"])?;
    for one in &told.limits {
        let configured = if one.configured.is_empty() { "unlimited".to_owned() } else { one.configured.join(" and ") };
        let mut line = format!("  {}  {configured}", one.scope);
        if let Some(now) = &one.now {
            line = format!("{line}; now a wait of {}", seconds(now.wait_s, now.wait_at_least));
            if let Some(why) = &now.why {
                line = format!("{line}, because of {why}");
            }
        }
        output::line(&line)?;
    }
    if !told.silent.is_empty() {
        output::line(&format!(
            "  DNS did not tell the mail exchangers of {}: each is its own group here",
            told.silent.join(", ")
        ))?;
    }
    if told.waits.is_empty() {
        return Ok(());
    }
    output::lines(["", "now"])?;
    let has_parts = told.waits.iter().any(|one| one.part > 1);
    for one in told.transports.iter().filter(|one| !one.takes_mail()) {
        output::line(&format!(
            "  {}: {}; jobs go by the next transport of the route, or wait",
            one.transport, one.says
        ))?;
    }
    for one in &told.waits {
        let part = if has_parts { format!("part {} ", one.part) } else { String::new() };
        output::line(&format!("  {part}by {}: {}", one.transport, sentence(one)))?;
    }
    Ok(())
}

fn sentence(wait: &Forecast) -> String {
    let time = seconds(wait.wait_s, wait.wait_at_least);
    let whom = wait.scope.as_deref().unwrap_or_default();
    match (wait.answer, wait.on_limit) {
        ("go", _) if wait.wait_s > 0.0 => format!("goes after {time}"),
        ("go", _) => "goes at once".to_owned(),
        ("park", _) => format!("waits for {time} because of {whom}"),
        (_, "expire") => format!("would have to wait for {time} because of {whom}, and expires"),
        (_, _) => format!(
            "would have to wait for {time} because of {whom}, so the next one is tried; it waits where none takes it"
        ),
    }
}

fn seconds(seconds: f64, at_least: bool) -> String {
    if at_least { format!("at least {seconds:.1} s") } else { format!("{seconds:.1} s") }
}
