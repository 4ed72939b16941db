//! The status for people.

use super::Status;
use crate::cli::output::{count, span};

/// Lines of it, with the next command after each count that is not zero.
pub(super) fn text(status: &Status) -> Vec<String> {
    let number = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let mut out: Vec<String> = status.not_known.iter().map(|why| format!("not known: {why}")).collect();
    if !out.is_empty() {
        out.push(String::new());
    }
    out.push(format!(
        "{:<15}{:>10}{:>12}{:>10}{:>10}{:>12}",
        "lane", "fresh", "come back", "in hand", "oldest", "sent/min"
    ));
    for lane in &status.lanes {
        let oldest = lane.oldest_seconds.map_or_else(|| "-".to_owned(), span);
        out.push(format!(
            "{:<15}{:>10}{:>12}{:>10}{oldest:>10}{:>12}",
            lane.lane.as_str(),
            number(lane.jobs),
            number(lane.due),
            number(lane.in_hand),
            number(lane.accepted_in_a_minute)
        ));
    }
    out.push(format!(
        "parked {}   dead {}   hold {}   suspect {}   unroutable {}",
        number(status.parked),
        number(status.dead),
        number(status.hold),
        number(status.suspect),
        number(status.unroutable)
    ));
    if status.parked.is_none_or(|parked| parked > 0) && !status.parked_for.is_empty() {
        let list: Vec<String> = status.parked_for.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        out.push(format!("  parked for: {}", list.join(", ")));
    }
    for (number, what, command) in [
        (status.dead, "given up", "postrider dead ls"),
        (status.hold, "wait for a person", "postrider hold ls"),
        (status.suspect, "in quarantine", "see PostriderSuspectMessages in the runbook"),
        (status.unroutable, "without a queue", "postrider unroutable ls"),
    ] {
        if let Some(number) = number.filter(|number| *number > 0) {
            out.push(format!("  {number} {what}: {command}"));
        }
    }
    out.push(String::new());
    out.extend(status.circuits.iter().map(|one| format!("transport {}: {}", one.transport, one.says)));
    out.extend(status.limits_text.iter().map(|limit| format!("limit {limit}")));
    if let Some(workers) = &status.workers {
        out.push(String::new());
        out.push(count(workers.len(), "worker"));
        for worker in workers {
            let does = if worker.consumes { "consumes" } else { "does not consume" };
            let in_hand: u64 = worker.in_hand.iter().sum();
            out.push(format!(
                "  {} pid {} version {} since {:.0}: {does}, {in_hand} in hand",
                worker.host, worker.pid, worker.version, worker.since
            ));
        }
    }
    if !status.failures.is_empty() {
        out.extend([String::new(), "failures of the last minutes".to_owned()]);
    }
    for failure in &status.failures {
        out.push(format!("{:>8} x {} {}: {}", failure.count, failure.transport, failure.class, failure.answer));
    }
    out
}
