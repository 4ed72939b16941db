//! The clock of a file: one time for every process at the file, which no step of the machine's wall clock moves.
//!
//! Leases, delays and ages in the file are told by it. All processes of a machine share the time since its start, so the file keeps
//! the distance from that to the wall clock as it was when the first process of this start of the machine opened the file. After
//! another start the distance is taken anew, and the clock never goes back behind the last time that was written.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension as _, params};

/// The table of the clock: one row.
pub(super) const DDL: &str = "
CREATE TABLE IF NOT EXISTS file_clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    boot TEXT NOT NULL,
    distance_us INTEGER NOT NULL,
    last_us INTEGER NOT NULL
);
";
/// How often the time is written down for the next start of the machine.
const NOTE_EVERY_US: i64 = 5_000_000;

/// The clock of one file, in time since 1970 (UTC). Clones tell the same time.
#[derive(Debug, Clone, Default)]
pub struct FileClock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    distance_us: AtomicI64,
    noted_us: AtomicI64,
}

impl FileClock {
    /// Now, in microseconds.
    pub fn now_us(&self) -> i64 {
        uptime_us() + self.0.distance_us.load(Ordering::Relaxed)
    }

    /// Now, in milliseconds.
    pub fn now_ms(&self) -> i64 {
        self.now_us() / 1000
    }

    /// Sets the clock by what the file says, inside a transaction of the caller. The first process after a start of the machine
    /// writes what the others then read.
    pub(super) fn set(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(DDL)?;
        let boot = boot_id();
        let noted = db
            .query_row("SELECT boot, distance_us, last_us FROM file_clock", [], |row| {
                Ok(Noted { boot: row.get(0)?, distance_us: row.get(1)?, last_us: row.get(2)? })
            })
            .optional()?;
        let uptime_us = uptime_us();
        let distance_us = distance(noted.as_ref(), &boot, uptime_us, wall_us());
        let now_us = uptime_us + distance_us;
        db.execute(
            "INSERT OR REPLACE INTO file_clock (one, boot, distance_us, last_us) VALUES (1, ?1, ?2, ?3)",
            params![boot, distance_us, now_us],
        )?;
        self.0.distance_us.store(distance_us, Ordering::Relaxed);
        self.0.noted_us.store(now_us, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the time down now and then, inside a transaction that is made anyway.
    pub(super) fn note(&self, db: &Connection) -> rusqlite::Result<()> {
        let now_us = self.now_us();
        if now_us - self.0.noted_us.load(Ordering::Relaxed) < NOTE_EVERY_US {
            return Ok(());
        }
        db.prepare_cached("UPDATE file_clock SET last_us = ?1 WHERE last_us < ?1")?.execute([now_us])?;
        self.0.noted_us.store(now_us, Ordering::Relaxed);
        Ok(())
    }
}

/// What the file says about its clock.
struct Noted {
    boot: String,
    distance_us: i64,
    last_us: i64,
}

/// The distance from the time since the machine's start to the time of the file.
fn distance(noted: Option<&Noted>, boot: &str, uptime_us: i64, wall_us: i64) -> i64 {
    match noted {
        // Without a name for the start of the machine, time that would go back shows another one.
        Some(noted) if noted.boot == boot && (!boot.is_empty() || uptime_us + noted.distance_us >= noted.last_us) => {
            noted.distance_us
        }
        Some(noted) => wall_us.max(noted.last_us) - uptime_us,
        None => wall_us - uptime_us,
    }
}

/// Microseconds since the machine's start, sleep included. No process and no person can set this clock.
fn uptime_us() -> i64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    time.tv_sec * 1_000_000 + time.tv_nsec / 1000
}

/// The wall clock.
fn wall_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Names this start of the machine; empty where the system has no name for it.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn noted(boot: &str, distance_us: i64, last_us: i64) -> Noted {
        Noted { boot: boot.to_owned(), distance_us, last_us }
    }

    #[test]
    fn a_step_of_the_wall_clock_does_not_move_the_clock_of_the_file() {
        let noted = noted("a", 100 * HOUR, 101 * HOUR);
        for wall_us in [0, 77 * HOUR, 102 * HOUR, 126 * HOUR] {
            assert_eq!(distance(Some(&noted), "a", 2 * HOUR, wall_us), 100 * HOUR);
        }
    }

    #[test]
    fn another_start_of_the_machine_takes_the_wall_clock_but_never_goes_back() {
        let noted = noted("a", 100 * HOUR, 101 * HOUR);
        assert_eq!(HOUR + distance(Some(&noted), "b", HOUR, 105 * HOUR), 105 * HOUR);
        assert_eq!(HOUR + distance(Some(&noted), "b", HOUR, 3 * HOUR), 101 * HOUR);
        assert_eq!(HOUR + distance(None, "b", HOUR, 3 * HOUR), 3 * HOUR);
    }

    #[test]
    fn without_a_name_for_the_start_time_that_would_go_back_shows_another_one() {
        let noted = noted("", 100 * HOUR, 150 * HOUR);
        assert_eq!(distance(Some(&noted), "", 51 * HOUR, 200 * HOUR), 100 * HOUR);
        assert_eq!(HOUR + distance(Some(&noted), "", HOUR, 200 * HOUR), 200 * HOUR);
    }

    #[test]
    fn two_connections_tell_the_same_time() {
        let folder = tempfile::TempDir::new().unwrap();
        let clock = || {
            let clock = FileClock::default();
            clock.set(&Connection::open(folder.path().join("clock.db")).unwrap()).unwrap();
            clock
        };
        let (one, other) = (clock(), clock());
        let (first, second, third) = (one.now_us(), other.now_us(), one.now_us());
        assert!(first <= second && second <= third, "{first} {second} {third}");
        assert!((wall_us() - third).abs() < 60_000_000);
    }
}
