//! The statements over the rows of messages and events. Each is one operation of the file's thread.

use std::time::Duration;

use jiff::Timestamp;
use postrider_producer::embedded::{
    DbError,
    tables::{meta_of, meta_text},
};
use postrider_schemas::Lane;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::now_ms;
use crate::{
    decide::settlement::Settlement,
    memory::Room,
    queue::{
        RestMessage, RestVerdict,
        depths::{Depths, place},
    },
};

/// What settling does to a row.
pub enum Change {
    /// The row goes.
    Delete,
    /// The row becomes its own copy: another queue, other headers, another time.
    Move { queue: &'static str, meta: String, due_at: i64 },
    /// The row becomes several of the queue of returning work, with these headers, due at once.
    Split { metas: Vec<String> },
    /// The row is free again, as if it had not been delivered: at once, or at this time.
    Free { due_at: Option<i64> },
}

impl Change {
    /// The change that a settlement asks for.
    pub fn of(settlement: Settlement) -> Self {
        let to = |queue, meta: &_, due_at| Self::Move { queue, meta: meta_text(meta), due_at };
        match settlement {
            Settlement::Done => Self::Delete,
            Settlement::Again { at, meta } => to("due", &meta, at.as_millisecond()),
            Settlement::Split(metas) => Self::Split { metas: metas.iter().map(meta_text).collect() },
            Settlement::Hold(meta) => to("hold", &meta, 0),
            Settlement::Bury(meta) => to("dead", &meta, 0),
            Settlement::Quarantine(meta) => to("suspect", &meta, 0),
            Settlement::Return => Self::Free { due_at: None },
            Settlement::Later(at) => Self::Free { due_at: Some(at.as_millisecond()) },
        }
    }
}

/// Settles a row; false if it is not this owner's any more.
pub fn settle(db: &Connection, row: i64, owner: &str, change: &Change) -> Result<bool, DbError> {
    let changed = match change {
        Change::Delete => {
            db.prepare_cached("DELETE FROM message WHERE id = ?1 AND owner = ?2")?.execute(params![row, owner])?
        }
        Change::Move { queue, meta, due_at } => db
            .prepare_cached(
                "UPDATE message SET queue = ?3, meta = ?4, due_at = ?5, published_at = ?6, deliveries = 0, owner = NULL, \
                 lease_until = 0 WHERE id = ?1 AND owner = ?2",
            )?
            .execute(params![row, owner, queue, meta, due_at, now_ms()])?,
        Change::Split { metas } => {
            let mut copy = db.prepare_cached(
                "INSERT INTO message (queue, lane, message_id, type, meta, body, due_at, published_at) \
                 SELECT 'due', lane, message_id, type, ?3, body, ?4, ?4 FROM message WHERE id = ?1 AND owner = ?2",
            )?;
            for meta in metas {
                copy.execute(params![row, owner, meta, now_ms()])?;
            }
            db.prepare_cached("DELETE FROM message WHERE id = ?1 AND owner = ?2")?.execute(params![row, owner])?
        }
        Change::Free { due_at } => db
            .prepare_cached(
                "UPDATE message SET owner = NULL, lease_until = 0, deliveries = max(deliveries - 1, 0), \
                 due_at = coalesce(?3, due_at) WHERE id = ?1 AND owner = ?2",
            )?
            .execute(params![row, owner, due_at])?,
    };
    Ok(changed > 0)
}

/// A row that was taken.
pub struct Taken {
    pub row: i64,
    pub lane: Option<String>,
    pub message_id: Option<String>,
    pub message_type: Option<String>,
    pub meta: String,
    pub published_at: i64,
    /// Deliveries before this one.
    pub deliveries: u32,
    pub body: Vec<u8>,
}

macro_rules! take_where {
    ($which:literal) => {
        concat!(
            "UPDATE message SET owner = ?1, lease_until = ?2, deliveries = deliveries + 1 WHERE id IN (SELECT id FROM (\
             SELECT * FROM (SELECT id, due_at FROM message INDEXED BY message_free WHERE owner IS NULL AND due_at <= ?5 AND \
             length(body) <= ?7 AND ",
            $which,
            " ORDER BY due_at, id LIMIT ?6) UNION ALL \
             SELECT id, due_at FROM message INDEXED BY message_by_lease \
             WHERE owner IS NOT NULL AND lease_until < ?5 AND owner <> ?1 AND due_at <= ?5 AND length(body) <= ?7 AND ",
            $which,
            ") ORDER BY due_at, id LIMIT ?6) \
             RETURNING id, lane, message_id, type, meta, published_at, deliveries - 1, body"
        )
    };
}

/// Takes up to `limit` free rows of a queue that are due and whose bodies are no larger than `bytes_max`, the oldest first. A row whose lease ended is free, but not to its owner, who lives
/// and still has it in hand; that it was delivered before stays counted.
pub fn take(
    db: &Connection,
    queue: &str,
    lane: Option<&str>,
    owner: &str,
    lease_ms: i64,
    limit: usize,
    bytes_max: u64,
) -> Result<Vec<Taken>, DbError> {
    let now = now_ms();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // The length of a body stands in front of it: it is not read for that.
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    // Two texts: with `?4 IS NULL OR lane = ?4` the rows of the whole queue would be read and sorted for every look. And two indexes: what is in
    // hand stands in front of what is free, and is not to be read for every look either.
    let mut statement = db.prepare_cached(match lane {
        Some(_) => take_where!("queue = ?3 AND lane = ?4"),
        None => take_where!("queue = ?3 AND ?4 IS NULL"),
    })?;
    let rows = statement.query_map(params![owner, now + lease_ms, queue, lane, now, limit, bytes_max], |row| {
        Ok(Taken {
            row: row.get(0)?,
            lane: row.get(1)?,
            message_id: row.get(2)?,
            message_type: row.get(3)?,
            meta: row.get(4)?,
            published_at: row.get(5)?,
            deliveries: row.get(6)?,
            body: row.get(7)?,
        })
    })?;
    let mut taken = rows.collect::<Result<Vec<_>, _>>()?;
    // RETURNING promises no order.
    taken.sort_by_key(|one| one.row);
    Ok(taken)
}

/// Rows of any size from the oldest one on, as long as these are large ones and `room` bytes hold them; then small ones. True where a large one may
/// have been passed over. What is passed over is looked at again each time: by its length, which stands in front of it.
pub fn take_by_size(
    db: &Connection,
    (queue, lane): (&str, Option<&str>),
    (owner, lease_ms): (&str, i64),
    limit: usize,
    mut room: Room,
) -> Result<(Vec<Taken>, bool), DbError> {
    let mut all = Vec::new();
    while all.len() < limit {
        let largest = if room.is_idle { u64::MAX } else { room.large.max(room.small_max) };
        let Some(one) = take(db, queue, lane, owner, lease_ms, 1, largest)?.pop() else { break };
        let bytes = one.body.len() as u64;
        room = Room { is_idle: false, large: room.large.saturating_sub(bytes), ..room };
        all.push(one);
        if bytes <= room.small_max {
            break;
        }
    }
    if room.is_idle {
        return Ok((all, false));
    }
    if all.len() < limit {
        all.extend(take(db, queue, lane, owner, lease_ms, limit - all.len(), room.small_max)?);
    }
    Ok((all, true))
}

macro_rules! next_where {
    ($which:literal) => {
        concat!(
            "SELECT min(at) FROM (\
             SELECT * FROM (SELECT due_at AS at FROM message INDEXED BY message_free WHERE owner IS NULL AND ",
            $which,
            " ORDER BY due_at LIMIT 1) UNION ALL SELECT * FROM (SELECT max(due_at, lease_until) FROM message \
             INDEXED BY message_by_lease WHERE owner IS NOT NULL AND owner <> ?3 AND ",
            $which,
            " ORDER BY lease_until LIMIT 1))"
        )
    };
}

/// The time, in ms, at which the next row of a queue becomes free or due for an owner.
pub fn next_turn(db: &Connection, queue: &str, lane: Option<&str>, owner: &str) -> Result<Option<i64>, DbError> {
    // Of those that nobody has in hand the first one; of those that somebody has, the one whose lease ends first.
    let text = match lane {
        Some(_) => next_where!("queue = ?1 AND lane = ?2"),
        None => next_where!("queue = ?1 AND ?2 IS NULL"),
    };
    Ok(db.prepare_cached(text)?.query_row(params![queue, lane, owner], |row| row.get(0)).optional()?.flatten())
}

/// Renews every lease of an owner.
pub fn renew(db: &Connection, owner: &str, lease_ms: i64) -> Result<(), DbError> {
    db.prepare_cached("UPDATE message SET lease_until = ?2 WHERE owner = ?1")?
        .execute(params![owner, now_ms() + lease_ms])?;
    Ok(())
}

/// Frees everything that an owner still has in hand at its end: it was begun and not finished, so it stays counted as delivered.
pub fn free_all(db: &Connection, owner: &str) -> Result<(), DbError> {
    db.execute("UPDATE message SET owner = NULL, lease_until = 0 WHERE owner = ?1", [owner])?;
    Ok(())
}

/// A page of messages at rest behind a row, in order.
pub fn at_rest(db: &Connection, queue: &str, after: i64, limit: i64) -> Result<Vec<(i64, RestMessage)>, DbError> {
    let read = |row: &Row<'_>| {
        let (message_id, meta, body): (Option<String>, String, Vec<u8>) = (row.get(1)?, row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, RestMessage { message_id, meta: meta_of(&meta), body: body.into() }))
    };
    let mut statement = db.prepare_cached(
        "SELECT id, message_id, meta, body FROM message WHERE queue = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )?;
    let rows = statement.query_map(params![queue, after, limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Does what was decided about a message at rest.
pub fn decided(db: &Connection, row: i64, verdict: &RestVerdict) -> Result<(), DbError> {
    match verdict {
        RestVerdict::Keep => {}
        RestVerdict::Drop => {
            db.execute("DELETE FROM message WHERE id = ?1", [row])?;
        }
        RestVerdict::Again(meta, lane) => {
            db.execute(
                "UPDATE message SET queue = 'due', lane = ?2, meta = ?3, due_at = ?4, published_at = ?4, deliveries = 0 WHERE id = ?1",
                params![row, lane.as_str(), meta_text(meta), now_ms()],
            )?;
        }
    }
    Ok(())
}

/// What waits, by queue and lane. Nothing but the index is read: the file's only thread does this every few seconds, over some 100,000 rows at times.
const WAITING: &str = "SELECT queue, lane, count(*) FROM message INDEXED BY message_free \
                       WHERE owner IS NULL AND due_at <= ?1 GROUP BY queue, lane";
/// Since when the next row of a queue and lane waits: it is the one that waits for longest.
const OLDEST: &str = "SELECT max(due_at, published_at) FROM message INDEXED BY message_free \
                      WHERE owner IS NULL AND queue = ?2 AND lane IS ?3 AND due_at <= ?1 ORDER BY due_at, id LIMIT 1";
/// When what is parked is due.
const PARKED: &str = "SELECT due_at FROM message INDEXED BY message_free \
                      WHERE owner IS NULL AND queue = 'due' AND lane = ?2 AND due_at > ?1";

/// How much waits where. What nobody has in hand waits; a row whose time has not come is on the level of the ladder where a broker would have it.
pub fn depths(db: &Connection) -> Result<Depths, DbError> {
    let now = now_ms();
    let mut depths = Depths { ladder: Some([0; 7]), ..Depths::default() };
    let (mut waiting, mut oldest) = (db.prepare_cached(WAITING)?, db.prepare_cached(OLDEST)?);
    let mut rows = waiting.query([now])?;
    while let Some(row) = rows.next()? {
        let (queue, text, count): (String, Option<String>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let count = u64::try_from(count).unwrap_or(0);
        let lane: Lane = text.as_ref().and_then(|lane| lane.parse().ok()).unwrap_or_default();
        let jobs = match queue.as_str() {
            "jobs" => &mut depths.jobs[place(lane)],
            "due" => &mut depths.due[place(lane)],
            "dead" => &mut depths.dead,
            "hold" => &mut depths.hold,
            _ => &mut depths.suspect,
        };
        *jobs += count;
        if matches!(queue.as_str(), "jobs" | "due")
            && let Some(since) = oldest.query_row(params![now, queue, text], |row| row.get::<_, i64>(0)).optional()?
        {
            let age = Duration::from_millis(u64::try_from(now - since).unwrap_or(0));
            let oldest = &mut depths.oldest[place(lane)];
            *oldest = Some(oldest.map_or(age, |known| known.max(age)));
        }
    }
    let mut parked = db.prepare_cached(PARKED)?;
    for lane in Lane::ALL {
        let mut rows = parked.query(params![now, lane.as_str()])?;
        while let Some(row) = rows.next()? {
            let seconds = u64::try_from((row.get::<_, i64>(0)? - now) / 1000).unwrap_or(0);
            // The place of the highest octal digit.
            let level = usize::try_from(seconds.checked_ilog2().unwrap_or(0) / 3).unwrap_or(0).min(6);
            if let Some(levels) = &mut depths.ladder {
                levels[level] += 1;
            }
        }
    }
    Ok(depths)
}

/// A page of events behind a number.
pub fn events(db: &Connection, after: i64, limit: i64) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    let mut statement =
        db.prepare_cached("SELECT number, json FROM event WHERE number > ?1 ORDER BY number LIMIT ?2")?;
    let rows = statement.query_map([after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Kept events whose document names a job. There is no index: a tool may take its time over some 100,000 rows.
pub fn events_about(db: &Connection, id: &str) -> Result<Vec<Vec<u8>>, DbError> {
    let mut statement =
        db.prepare_cached("SELECT json FROM event WHERE instr(CAST(json AS TEXT), ?1) > 0 ORDER BY number LIMIT 1000")?;
    let rows = statement.query_map([id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The messages of a job wherever they are, without their bodies.
pub fn waiting(db: &Connection, id: &str) -> Result<Vec<(String, RestMessage)>, DbError> {
    let mut statement =
        db.prepare_cached("SELECT queue, message_id, meta FROM message WHERE message_id = ?1 LIMIT 100")?;
    let read = |row: &Row<'_>| {
        let (queue, message_id, meta): (String, Option<String>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok((queue, RestMessage { message_id, meta: meta_of(&meta), body: bytes::Bytes::new() }))
    };
    let rows = statement.query_map([id], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The time a row was published.
pub fn published_at(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}

#[cfg(test)]
mod tests {
    use postrider_producer::embedded::tables;

    use super::*;

    /// A file with one due message.
    fn file() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(tables::DDL).unwrap();
        db.execute(
            "INSERT INTO message (queue, lane, message_id, type, meta, due_at, published_at, body) \
             VALUES ('due', 'bulk', 'm', 't', '{}', 0, 0, x'00')",
            [],
        )
        .unwrap();
        db
    }

    #[track_caller]
    fn check_take(db: &Connection, owner: &str, lease_ms: i64, expected: &[u32]) {
        let taken = take(db, "due", Some("bulk"), owner, lease_ms, 9, u64::MAX).unwrap();
        assert_eq!(taken.iter().map(|one| one.deliveries).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_row_whose_lease_ended_is_free_to_others_but_not_to_its_owner_who_lives() {
        let db = file();
        check_take(&db, "a", -1, &[0]);
        check_take(&db, "a", -1, &[]);
        assert_eq!(next_turn(&db, "due", None, "a").unwrap(), None, "nothing to wake up for");
        assert!(next_turn(&db, "due", None, "b").unwrap().is_some());
        check_take(&db, "b", 60_000, &[1]);
        check_take(&db, "a", 60_000, &[]);
        assert!(!settle(&db, 1, "a", &Change::Delete).unwrap(), "it belongs to somebody else now");
        assert!(settle(&db, 1, "b", &Change::Delete).unwrap());
    }

    #[test]
    fn small_rows_pass_large_ones_for_which_there_is_no_room_and_one_that_is_larger_than_all_goes_alone() {
        let db = file();
        db.execute("DELETE FROM message", []).unwrap();
        for kilobytes in [900, 50, 50, 1, 1, 50] {
            db.execute(
                "INSERT INTO message (queue, lane, meta, due_at, published_at, body) VALUES ('due', 'bulk', '{}', 0, 0, zeroblob(?1 * 1000))",
                [kilobytes],
            )
            .unwrap();
        }
        let check = |is_idle, large, expected: &[usize], may_be_more| {
            let room = Room { is_idle, large, small_max: 2000 };
            let (taken, passed_over) = take_by_size(&db, ("due", Some("bulk")), ("a", 60_000), 9, room).unwrap();
            assert_eq!(taken.iter().map(|one| one.body.len() / 1000).collect::<Vec<_>>(), expected);
            assert_eq!(passed_over, may_be_more);
            for one in taken {
                assert!(settle(&db, one.row, "a", &Change::Free { due_at: None }).unwrap());
            }
        };
        check(false, 0, &[1, 1], true);
        check(false, 60_000, &[50, 1, 1], true);
        check(false, 120_000, &[50, 50, 1, 1], true);
        check(true, 0, &[900, 1, 1], true);
        db.execute("DELETE FROM message", []).unwrap();
        check(true, 60_000, &[], false);
    }

    /// How a statement would be carried out.
    fn plan(db: &Connection, text: &str) -> String {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
        let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
        let rows = statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join("\n")
    }

    #[test]
    fn a_look_for_free_rows_reads_neither_what_is_in_hand_nor_what_is_not_due() {
        let db = file();
        let take = plan(&db, take_where!("queue = ?3 AND lane = ?4"));
        assert!(take.contains("message_free (queue=? AND lane=? AND due_at<?)"), "{take}");
        assert!(
            take.contains("message_by_lease (queue=? AND lane=? AND lease_until<?)") && !take.contains("SCAN message"),
            "{take}"
        );
        let next = plan(&db, next_where!("queue = ?1 AND lane = ?2"));
        assert!(
            next.contains("message_free (queue=? AND lane=?)")
                && next.contains("message_by_lease (queue=? AND lane=?)"),
            "{next}"
        );
        assert!(!next.contains("TEMP B-TREE"), "the first one is enough: {next}");
    }

    #[test]
    fn depths_read_the_index_and_tell_what_waits_for_how_long_and_what_is_parked() {
        let db = file();
        let now = now_ms();
        let insert =
            "INSERT INTO message (queue, lane, due_at, published_at, owner, body) VALUES (?1, ?2, ?3, ?4, ?5, x'00')";
        let none = None::<&str>;
        for (queue, lane, due_at, published_at, owner) in [
            ("jobs", Some("bulk"), 0, now - 70_000, none),
            ("jobs", Some("bulk"), 0, now - 60_000, none),
            ("jobs", Some("bulk"), 0, now - 90_000, Some("a")),
            ("due", Some("transactional"), now - 40_000, now - 80_000, none),
            ("due", Some("transactional"), now - 30_000, now - 80_000, none),
            ("due", Some("transactional"), now + 5_000, now, none),
            ("due", Some("bulk"), now + 70_000, now, none),
            ("dead", none, 0, now, none),
        ] {
            db.execute(insert, params![queue, lane, due_at, published_at, owner]).unwrap();
        }
        db.execute("DELETE FROM message WHERE message_id = 'm'", []).unwrap();
        let depths = depths(&db).unwrap();
        let of = |counts: [u64; 2]| Lane::ALL.map(|lane| counts[place(lane)]);
        assert_eq!((of(depths.jobs), of(depths.due), depths.dead), ([0, 2], [2, 0], 1));
        let ages = Lane::ALL.map(|lane| depths.oldest[place(lane)].unwrap().as_secs());
        assert!((40..50).contains(&ages[0]) && (70..80).contains(&ages[1]), "{ages:?}");
        assert_eq!(depths.ladder, Some([1, 0, 1, 0, 0, 0, 0]));
        for (text, expected) in [
            (WAITING, "SCAN message USING INDEX message_free"),
            (OLDEST, "message_free (queue=? AND lane=? AND due_at<?)"),
            (PARKED, "message_free (queue=? AND lane=? AND due_at>?)"),
        ] {
            let plan = plan(&db, text);
            assert!(plan.contains(expected) && !plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
