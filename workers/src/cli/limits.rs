//! `postrider limits`: how fast mail may go now, and orders to go slower, faster or not at all for a time.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use super::{
    super::delivery::context,
    ConfigArguments,
    output::{self, Format},
};
use crate::{
    config::{parse_duration, show_duration},
    policy::rate_limit::{
        rate::{Rate, pace},
        scope::{Limit, Scope},
        scope_view::{ScopeView, scope_view},
        shaping_rule::LimitCommand,
    },
    rate_limit::Limiter,
    store::Store,
};

/// Arguments of `postrider limits`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: LimitsCommand,
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
enum LimitsCommand {
    /// List scopes: rate now, what was used, who waits
    Ls {
        /// Only scopes whose name begins with this, such as transport: or group:relay:google
        prefix: Option<String>,
        /// Say everything of each scope, in lines wider than 80 characters
        #[arg(long)]
        wide: bool,
        /// Order of the list
        #[arg(long, value_enum, default_value = "binding")]
        sort: LimitSort,
        #[command(flatten)]
        common: Common,
    },
    /// Stop the mail of a scope for a time
    Pause {
        /// Such as transport:relay, group:relay:google, tenant:shop
        scope: String,
        /// How long, at least 1s: 30s, 2m, 12h, 7d
        #[arg(long = "for", value_parser = order_time, default_value = "1h")]
        time: Duration,
        /// Why, for those who look
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// End a pause, a reduction or a set rate
    ///
    /// Jobs that were deferred meanwhile ask again at the slot they got, after half an hour at most.
    Resume {
        /// The scope
        scope: String,
        #[command(flatten)]
        common: Common,
    },
    /// Set another rate for a time
    ///
    /// It replaces the rates for the same unit of time and for shorter ones. It holds at once for whatever asks; jobs that were deferred ask again at
    /// the slot they got, after half an hour at most.
    Set {
        /// The scope
        scope: String,
        /// Such as 20/s or 100/min
        rate: Rate,
        /// How long, at least 1s: 30s, 2m, 12h, 7d
        #[arg(long = "for", value_parser = order_time, default_value = "1h")]
        time: Duration,
        /// Why, for those who look
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LimitSort {
    /// What makes mail wait first, those with the longest wait before others.
    Binding,
    /// By name.
    Name,
    /// The most used first.
    Used,
}

/// Longest reason that is kept, in bytes.
const REASON_MAX: usize = 200;

/// Runs it.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut set = None;
    let (scope, order, done, common) = match arguments.command {
        LimitsCommand::Ls { prefix, wide, sort, common } => {
            return list(&prefix.unwrap_or_default(), wide, sort, &common).await;
        }
        LimitsCommand::Pause { scope, time, reason, common } => {
            let done = format!("is paused for {}", show_duration(time));
            (scope, LimitCommand::Pause { for_us: us(time), why: short(reason)? }, done, common)
        }
        LimitsCommand::Resume { scope, common } => (scope, LimitCommand::Resume, "is as configured".to_owned(), common),
        LimitsCommand::Set { scope, rate, time, reason, common } => {
            let done = format!("is held to {rate} for {}", show_duration(time));
            set = Some(rate);
            let limit = Limit::from(&rate);
            let (bucket, interval_us, tolerance_us) = (limit.bucket.to_owned(), limit.interval_us, limit.tolerance_us);
            let why = short(reason)?;
            (scope, LimitCommand::Set { bucket, interval_us, tolerance_us, for_us: us(time), why }, done, common)
        }
    };
    let (store, limiter) = connect(&common, true).await?;
    let is_stored =
        || async { anyhow::Ok(!store.overview(Some(std::slice::from_ref(&scope))).await?.scopes.is_empty()) };
    // What an earlier configuration left may be ended as well.
    let scope = if matches!(order, LimitCommand::Resume) && is_stored().await? {
        scope
    } else {
        limiter.scope(&scope).map_err(anyhow::Error::msg)?
    };
    store.order(&scope, &order).await.context("the store did not take the order")?;
    let longer =
        limiter.configured(&scope).into_iter().filter(|one| set.is_some_and(|set| one.period() > set.period()));
    let beside = longer.fold(String::new(), |beside, one| format!("{beside}, and to {one} as configured"));
    let done = format!("{scope} {done}{beside}");
    match common.format {
        Format::Text => output::line(&done)?,
        Format::Json => output::json(&json!({ "scope": scope, "done": done }))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An order is kept in a store that no worker has used yet as well; a look makes nothing.
async fn connect(common: &Common, orders: bool) -> anyhow::Result<(Store, Limiter)> {
    let config = common.config.load_to_look()?;
    let store = if orders { context::store(&config).await? } else { context::existing_store(&config).await? };
    let limiter = Limiter::new(&config, store.clone())?;
    Ok((store, limiter))
}

/// A time that an order holds for.
fn order_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time < Duration::from_secs(1) { Err("at least 1s".to_owned()) } else { Ok(time) }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn short(reason: String) -> anyhow::Result<String> {
    anyhow::ensure!(!reason.trim().is_empty(), "--reason: say why, for those who look");
    anyhow::ensure!(reason.len() <= REASON_MAX, "--reason: at most {REASON_MAX} bytes");
    anyhow::ensure!(!reason.contains(char::is_control), "--reason: one line");
    Ok(reason)
}

async fn list(prefix: &str, wide: bool, sort: LimitSort, common: &Common) -> anyhow::Result<ExitCode> {
    let (store, limiter) = connect(common, false).await?;
    let mut rows = rows(&store, &limiter).await?;
    rows.retain(|row| row.scope.starts_with(prefix));
    sorted(&mut rows, sort);
    match (common.format, wide) {
        (Format::Json, _) => rows.iter().try_for_each(|row| output::json(&row.json()))?,
        (Format::Text, true) => output::lines(rows.iter().map(|row| text(&row.scope, &row.configured, &row.drawn)))?,
        (Format::Text, false) => {
            output::lines(output::table(&HEADER, &rows.iter().map(cells).collect::<Vec<_>>(), false))?;
        }
    }
    if common.format == Format::Text {
        let binding = rows.iter().filter(|row| row.drawn.binds()).count();
        output::remark(&match rows.len() {
            0 => "0 shown: no such scope was asked for of late".to_owned(),
            shown => format!("{shown} shown, {binding} of them make mail wait or go otherwise than configured"),
        });
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 5] = ["scope", "used/min", "tenants", "last slot", "now"];

fn sorted(rows: &mut [LimitRow], sort: LimitSort) {
    match sort {
        LimitSort::Name => rows.sort_by(|one, other| one.scope.cmp(&other.scope)),
        LimitSort::Used => rows.sort_by_key(|row| std::cmp::Reverse(row.drawn.used)),
        LimitSort::Binding => {
            let key = |row: &LimitRow| (row.drawn.binds(), row.drawn.tenants > 0);
            rows.sort_by(|one, other| {
                let by_wait = || other.drawn.last_slot_s.total_cmp(&one.drawn.last_slot_s);
                key(other).cmp(&key(one)).then_with(by_wait).then_with(|| other.drawn.used.cmp(&one.drawn.used))
            });
        }
    }
}

/// A row for people: what a scope is held to now stands last, because it may be long.
fn cells(row: &LimitRow) -> Vec<String> {
    let drawn = &row.drawn;
    let slot = if drawn.tenants > 0 { format!("{:.0}s", drawn.last_slot_s) } else { "-".to_owned() };
    let mut now = Vec::new();
    now.extend(drawn.paused_for_s.map(|seconds| format!("paused for {seconds:.0}s")));
    now.extend(
        drawn
            .set_for_s
            .map(|seconds| format!("set for {seconds:.0}s to {}", drawn.per_second.map_or_else(String::new, pace))),
    );
    if drawn.left_percent < 100.0 {
        now.push(format!("cut to {:.0} %", drawn.left_percent));
    }
    now.push(if row.configured.is_empty() { "unlimited".to_owned() } else { row.configured.join(" and ") });
    now.extend(drawn.why.clone());
    let used = drawn.used.0.max(drawn.used.1);
    vec![row.scope.clone(), used.to_string(), drawn.tenants.to_string(), slot, now.join(", ")]
}

/// A scope that was asked for of late.
pub(super) struct LimitRow {
    /// Its name.
    pub(super) scope: String,
    /// Its rates in the configuration.
    pub(super) configured: Vec<String>,
    /// How it is now.
    pub(super) drawn: ScopeView,
}

impl LimitRow {
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
            "tenants_waiting": drawn.tenants,
            "next_room_s": drawn.next_room_s,
            "last_slot_s": drawn.last_slot_s,
        })
    }
}

/// Every scope that was asked for of late.
pub(super) async fn rows(store: &Store, limiter: &Limiter) -> anyhow::Result<Vec<LimitRow>> {
    let overview = store.overview(None).await?;
    let row = |(scope, state): &(String, Scope)| {
        let rates = limiter.configured(scope);
        let limits: Vec<Limit> = rates.iter().map(Limit::from).collect();
        let configured = rates.iter().map(ToString::to_string).collect();
        LimitRow { scope: scope.clone(), configured, drawn: scope_view(state, &limits, overview.now) }
    };
    Ok(overview.scopes.iter().map(row).collect())
}

/// One line for people.
pub(super) fn text(name: &str, configured: &[String], drawn: &ScopeView) -> String {
    let configured = if configured.is_empty() { "unlimited".to_owned() } else { configured.join(" and ") };
    let mut parts = vec![format!("{name}  {configured}")];
    parts.extend(drawn.paused_for_s.map(|seconds| format!("paused for {seconds:.0} s")));
    let is_cut = drawn.left_percent < 100.0;
    if is_cut {
        parts.push(format!("cut to {:.0} %", drawn.left_percent));
    }
    match (drawn.set_for_s, drawn.per_second) {
        (Some(seconds), Some(per_second)) => parts.push(format!("held to {} for {seconds:.0} s", pace(per_second))),
        (None, Some(per_second)) if is_cut => parts.push(format!("that is {}", pace(per_second))),
        _ => {}
    }
    parts.extend(drawn.why.as_ref().map(|why| format!("because of {why}")));
    parts.push(format!("used {} this minute and {} the last", drawn.used.0, drawn.used.1));
    // Behind a pause there is room when it ends, and behind a line nobody asks when there would be without it.
    if drawn.is_used_up() && drawn.tenants == 0 && drawn.paused_for_s.is_none() {
        parts.push(format!("room in {:.0} s", drawn.next_room_s.ceil()));
    }
    if drawn.tenants > 0 {
        let (tenants, end) = (output::count(drawn.tenants, "tenant"), drawn.last_slot_s);
        parts.push(format!("jobs of {tenants} wait, the last slot is in {end:.0} s"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(drawn: ScopeView, expected: &str) {
        assert_eq!(text("transport:relay", &["1/d".to_owned()], &drawn), format!("transport:relay  1/d, {expected}"));
    }

    #[test]
    fn people_see_when_there_is_room_and_slow_rates_as_they_write_them() {
        let whole = ScopeView { left_percent: 100.0, used: (1, 2), ..ScopeView::default() };
        check(whole.clone(), "used 1 this minute and 2 the last");
        let used_up = ScopeView { next_room_s: 86_399.5, ..whole.clone() };
        check(used_up.clone(), "used 1 this minute and 2 the last, room in 86400 s");
        check(
            ScopeView { tenants: 1, last_slot_s: 90_000.0, ..used_up.clone() },
            "used 1 this minute and 2 the last, jobs of 1 tenant wait, the last slot is in 90000 s",
        );
        check(
            ScopeView { paused_for_s: Some(60.0), next_room_s: 60.0, ..whole.clone() },
            "paused for 60 s, used 1 this minute and 2 the last",
        );
        check(
            ScopeView { left_percent: 50.0, per_second: Some(0.5 / 86_400.0), ..whole.clone() },
            "cut to 50 %, that is 0.5/d, used 1 this minute and 2 the last",
        );
        check(
            ScopeView { set_for_s: Some(9.0), per_second: Some(1.0 / 60.0), ..whole },
            "held to 1/min for 9 s, used 1 this minute and 2 the last",
        );
    }

    #[test]
    fn what_binds_stands_first() {
        let row = |scope: &str, last_slot_s: f64, used| LimitRow {
            scope: scope.to_owned(),
            configured: vec!["1/s".to_owned()],
            drawn: ScopeView {
                left_percent: 100.0,
                tenants: usize::from(last_slot_s > 0.0),
                last_slot_s,
                used: (used, 0),
                ..ScopeView::default()
            },
        };
        let mut rows = vec![row("a", 0.0, 9), row("b", 2.0, 0), row("c", 7.0, 0), row("d", 0.0, 1)];
        let names = |rows: &[LimitRow]| rows.iter().map(|row| row.scope.as_str()).collect::<String>();
        sorted(&mut rows, LimitSort::Binding);
        assert_eq!(names(&rows), "cbad");
        sorted(&mut rows, LimitSort::Used);
        assert_eq!(&names(&rows)[..2], "ad");
        sorted(&mut rows, LimitSort::Name);
        assert_eq!(names(&rows), "abcd");
        for line in output::table(&HEADER, &rows.iter().map(cells).collect::<Vec<_>>(), false) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn counts_are_whole_numbers_for_programs() {
        let row = LimitRow {
            scope: "tenant:a".to_owned(),
            configured: Vec::new(),
            drawn: scope_view(&Scope::default(), &[], 1.76e15),
        };
        let told = row.json();
        for count in ["used_this_minute", "used_last_minute", "tenants_waiting"] {
            assert_eq!(told[count].to_string(), "0", "{count}");
        }
        assert!(!told.to_string().contains("-0"), "{told}");
    }

    #[test]
    fn an_order_has_a_reason_and_a_time() {
        assert_eq!(order_time("30m"), Ok(Duration::from_mins(30)));
        for wrong in ["0s", "999ms"] {
            assert_eq!(order_time(wrong), Err("at least 1s".to_owned()), "{wrong}");
        }
        for wrong in ["", "  ", "two\nlines"] {
            assert!(short(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
