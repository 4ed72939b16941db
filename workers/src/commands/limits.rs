//! `postrider limits`: how fast mail may go now, and orders to go slower, faster or not at all for a time.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use super::{
    ConfigArguments,
    output::{self, Format},
    world,
};
use crate::{
    config::parse_duration,
    decide::limits::{
        picture::{Picture, picture},
        rate::Rate,
        reaction::Order,
        scope::{Limit, Scope},
    },
    limiter::Limiter,
    store::Store,
};

/// Arguments of `postrider limits`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Every scope that was asked for of late: its rate now, what was used, who waits
    Ls {
        /// Only scopes whose name begins with this, such as transport: or group:relay:google
        prefix: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Let nothing through for a time
    Pause {
        /// Such as transport:relay, group:relay:google, tenant:shop
        scope: String,
        /// How long: 500ms, 30s, 2m, 12h, 7d
        #[arg(long = "for", value_parser = parse_duration, default_value = "1h")]
        time: Duration,
        /// Why, for those who look
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// End whatever was paused, cut or set. Jobs that were put away meanwhile ask again at the slot they got, after half an hour at most
    Resume {
        /// The scope
        scope: String,
        #[command(flatten)]
        common: Common,
    },
    /// Another rate for a time, in place of those for the same unit of time and for shorter ones. It holds at once for whatever asks; jobs that were put away ask again at the slot they got, after half an hour at most
    Set {
        /// The scope
        scope: String,
        /// Such as 20/s or 100/min
        rate: Rate,
        /// How long: 500ms, 30s, 2m, 12h, 7d
        #[arg(long = "for", value_parser = parse_duration, default_value = "1h")]
        time: Duration,
        /// Why, for those who look
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Longest reason that is kept, in bytes.
const REASON_MAX: usize = 200;

/// Runs it.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (scope, order, done, common) = match arguments.command {
        Command::Ls { prefix, common } => return list(&prefix.unwrap_or_default(), &common).await,
        Command::Pause { scope, time, reason, common } => {
            let done = format!("{scope} is paused for {time:?}");
            (scope, Order::Pause { for_us: us(time), why: short(reason)? }, done, common)
        }
        Command::Resume { scope, common } => {
            let done = format!("{scope} is as configured");
            (scope, Order::Resume, done, common)
        }
        Command::Set { scope, rate, time, reason, common } => {
            let done = format!("{scope} is held to {rate} for {time:?}");
            let limit = Limit::from(&rate);
            let (bucket, interval_us, tolerance_us) = (limit.bucket.to_owned(), limit.interval_us, limit.tolerance_us);
            let why = short(reason)?;
            (scope, Order::Set { bucket, interval_us, tolerance_us, for_us: us(time), why }, done, common)
        }
    };
    let (store, limiter) = connect(&common).await?;
    anyhow::ensure!(
        limiter.knows(&scope),
        "`{scope}` is no scope of this configuration: transport:NAME, group:TRANSPORT:GROUP, tenant:NAME or sender:TRANSPORT:DOMAIN, where a group has a \
         name of the lists (such as google), of a [[throttle]], or is a domain"
    );
    store.order(&scope, &order).await.context("the store did not take the order")?;
    match common.format {
        Format::Text => output::line(&done)?,
        Format::Json => output::json(&json!({ "scope": scope, "done": done }))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(common: &Common) -> anyhow::Result<(Store, Limiter)> {
    let config = common.config.load()?;
    let store = world::store(&config.store).await?;
    let limiter = Limiter::new(&config, store.clone())?;
    Ok((store, limiter))
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn short(reason: String) -> anyhow::Result<String> {
    anyhow::ensure!(reason.len() <= REASON_MAX, "--reason: at most {REASON_MAX} bytes");
    anyhow::ensure!(!reason.contains(char::is_control), "--reason: one line");
    Ok(reason)
}

async fn list(prefix: &str, common: &Common) -> anyhow::Result<ExitCode> {
    let (store, limiter) = connect(common).await?;
    let rows = rows(&store, &limiter).await?;
    let rows: Vec<&Row> = rows.iter().filter(|row| row.scope.starts_with(prefix)).collect();
    if rows.is_empty() && common.format == Format::Text {
        output::remark("0 shown: no such scope was asked for of late");
    }
    for row in rows {
        match common.format {
            Format::Text => output::line(&text(&row.scope, &row.configured, &row.drawn))?,
            Format::Json => output::json(&row.json())?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A scope that was asked for of late.
pub(super) struct Row {
    /// Its name.
    pub(super) scope: String,
    /// Its rates in the configuration.
    pub(super) configured: Vec<String>,
    /// How it is now.
    pub(super) drawn: Picture,
}

impl Row {
    /// For programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let drawn = &self.drawn;
        json!({
            "scope": self.scope,
            "configured": self.configured,
            "per_second": drawn.per_second,
            "left_percent": drawn.left_percent.round(),
            "set_for_s": drawn.set_for_s.map(f64::round),
            "paused_for_s": drawn.paused_for_s.map(f64::ceil),
            "why": drawn.why,
            "used_this_minute": drawn.used.0,
            "used_last_minute": drawn.used.1,
            "waiting": drawn.waiting,
            "waiting_at_least": drawn.waiting_at_least,
            "tenants_waiting": drawn.tenants,
            "next_room_s": drawn.next_room_s,
            "last_slot_s": drawn.last_slot_s,
        })
    }
}

/// Every scope that was asked for of late.
pub(super) async fn rows(store: &Store, limiter: &Limiter) -> anyhow::Result<Vec<Row>> {
    let overview = store.overview(None).await?;
    let row = |(scope, state): &(String, Scope)| {
        let rates = limiter.configured(scope);
        let limits: Vec<Limit> = rates.iter().map(Limit::from).collect();
        let configured = rates.iter().map(ToString::to_string).collect();
        Row { scope: scope.clone(), configured, drawn: picture(state, &limits, overview.now) }
    };
    Ok(overview.scopes.iter().map(row).collect())
}

/// One line for people.
pub(super) fn text(name: &str, configured: &[String], drawn: &Picture) -> String {
    let configured = if configured.is_empty() { "unlimited".to_owned() } else { configured.join(" and ") };
    let mut parts = vec![format!("{name}  {configured}")];
    parts.extend(drawn.paused_for_s.map(|seconds| format!("paused for {seconds:.0} s")));
    let is_cut = drawn.left_percent < 100.0;
    if is_cut {
        parts.push(format!("cut to {:.0} %", drawn.left_percent));
    }
    match (drawn.set_for_s, drawn.per_second) {
        (Some(seconds), Some(pace)) => parts.push(format!("held to {pace:.2}/s for {seconds:.0} s")),
        (None, Some(pace)) if is_cut => parts.push(format!("that is {pace:.2}/s")),
        _ => {}
    }
    parts.extend(drawn.why.as_ref().map(|why| format!("because of {why}")));
    parts.push(format!("used {} this minute and {} the last", drawn.used.0, drawn.used.1));
    if drawn.tenants > 0 {
        let (jobs, tenants, end) = (drawn.waiting, drawn.tenants, drawn.last_slot_s);
        let (jobs, tenants) = (output::count(jobs, "job"), output::count(tenants, "tenant"));
        parts.push(if drawn.waiting_at_least {
            format!("at least {jobs} of {tenants} wait, the last one for more than {end:.0} s")
        } else {
            format!("about {jobs} of {tenants} wait, the last one for {end:.0} s")
        });
    }
    parts.join(", ")
}
