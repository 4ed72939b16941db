//! The statements over the rows of messages and events. Each is one operation of the file's thread.

use std::time::Duration;

use jiff::Timestamp;
use postrider_producer::embedded::{
    DbError,
    tables::{meta_of, meta_text},
};
use postrider_schemas::{JobId, Lane, Tenant, ladder};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::{
    memory::Room,
    policy::settlement::Settlement,
    queue::{
        RestMessage, RestVerdict,
        depths::{Depths, place},
    },
};

/// A row that is given back is taken again after so long.
const GIVE_BACK_WAIT_MS: i64 = 1000;

/// What settling does to a row.
pub enum RowChange {
    /// The row goes.
    Delete,
    /// The row becomes its own copy: another queue, other headers, another time.
    Move { queue: &'static str, meta: String, due_at: i64 },
    /// The row becomes several of the queue of returning work, with these headers, due at once.
    Split { metas: Vec<String> },
    /// The row is free again, as if it had not been delivered: at once, or at this time.
    Free { due_at: Option<i64> },
    /// The row is free again after a moment; that it was delivered stays counted.
    GiveBack { due_at: i64 },
}

impl RowChange {
    /// The change that a settlement asks for, at this time of the file.
    pub fn of(settlement: Settlement, now_ms: i64) -> Self {
        // No longer than a copy waits on a broker: the ledger remembers that a job was cancelled or postponed for a little more than that.
        let after = |wait: Duration| {
            let wait = wait.min(ladder::WAIT_MAX);
            now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
        };
        let to = |queue, meta: &_, due_at| Self::Move { queue, meta: meta_text(meta), due_at };
        match settlement {
            Settlement::Done => Self::Delete,
            Settlement::Again { wait, meta } => to("due", &meta, after(wait)),
            Settlement::Split(metas) => Self::Split { metas: metas.iter().map(meta_text).collect() },
            Settlement::Hold(meta) => to("hold", &meta, 0),
            Settlement::DeadLetter(meta) => to("dead", &meta, 0),
            Settlement::Quarantine(meta) => to("suspect", &meta, 0),
            Settlement::Return => Self::Free { due_at: None },
            Settlement::Later(wait) => Self::Free { due_at: Some(after(wait)) },
            Settlement::GiveBack => Self::GiveBack { due_at: now_ms + GIVE_BACK_WAIT_MS },
        }
    }
}

/// Which delivery of a row: the row comes back with the same number, also to the same worker, and each time it is taken by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// The row.
    pub row: i64,
    /// The fencing token: counts how often the row was taken.
    pub fence: i64,
}

/// Settles a delivery; false if its row was taken again since, or given back. What a lease or a clock says does not matter here.
pub fn settle(db: &Connection, take: Take, owner: &str, change: &RowChange, now_ms: i64) -> Result<bool, DbError> {
    let Take { row, fence } = take;
    let delete = "DELETE FROM message WHERE id = ?1 AND owner = ?2 AND fence = ?3";
    let changed = match change {
        RowChange::Delete => db.prepare_cached(delete)?.execute(params![row, owner, fence])?,
        RowChange::Move { queue, meta, due_at } => db
            .prepare_cached(
                "UPDATE message SET queue = ?4, meta = ?5, due_at = ?6, published_at = ?7, deliveries = 0, owner = NULL, \
                 lease_until = 0 WHERE id = ?1 AND owner = ?2 AND fence = ?3",
            )?
            .execute(params![row, owner, fence, queue, meta, due_at, now_ms])?,
        RowChange::Split { metas } => {
            let mut copy = db.prepare_cached(
                "INSERT INTO message (queue, lane, message_id, type, meta, body, due_at, published_at) \
                 SELECT 'due', lane, message_id, type, ?4, body, ?5, ?5 FROM message \
                 WHERE id = ?1 AND owner = ?2 AND fence = ?3",
            )?;
            for meta in metas {
                copy.execute(params![row, owner, fence, meta, now_ms])?;
            }
            db.prepare_cached(delete)?.execute(params![row, owner, fence])?
        }
        RowChange::Free { due_at } => db
            .prepare_cached(
                "UPDATE message SET owner = NULL, lease_until = 0, deliveries = max(deliveries - 1, 0), \
                 due_at = coalesce(?4, due_at) WHERE id = ?1 AND owner = ?2 AND fence = ?3",
            )?
            .execute(params![row, owner, fence, due_at])?,
        RowChange::GiveBack { due_at } => db
            .prepare_cached(
                "UPDATE message SET owner = NULL, lease_until = 0, due_at = ?4 WHERE id = ?1 AND owner = ?2 AND fence = ?3",
            )?
            .execute(params![row, owner, fence, due_at])?,
    };
    Ok(changed > 0)
}

/// A row that was taken.
pub struct TakenRow {
    pub take: Take,
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
            "UPDATE message SET owner = ?1, lease_until = ?2, deliveries = deliveries + 1, fence = fence + 1 WHERE id IN (SELECT id FROM (\
             SELECT * FROM (SELECT id, due_at FROM message INDEXED BY message_free WHERE owner IS NULL AND due_at <= ?5 AND \
             length(body) <= ?7 AND ",
            $which,
            " ORDER BY due_at, id LIMIT ?6) UNION ALL \
             SELECT id, due_at FROM message INDEXED BY message_by_lease \
             WHERE owner IS NOT NULL AND lease_until < ?5 AND owner <> ?1 AND due_at <= ?5 AND length(body) <= ?7 AND ",
            $which,
            ") ORDER BY due_at, id LIMIT ?6) \
             RETURNING id, lane, message_id, type, meta, published_at, deliveries - 1, body, fence"
        )
    };
}

/// Takes up to `limit` free rows of a queue that are due and whose bodies are no larger than `bytes_max`, the oldest first. A row whose lease ended is free, but not to its owner, who lives
/// and still has it in hand; that it was delivered before stays counted.
pub fn take(
    db: &Connection,
    (queue, lane): (&str, Option<&str>),
    (owner, lease_ms): (&str, i64),
    limit: usize,
    bytes_max: u64,
    now: i64,
) -> Result<Vec<TakenRow>, DbError> {
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
        Ok(TakenRow {
            take: Take { row: row.get(0)?, fence: row.get(8)? },
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
    taken.sort_by_key(|one| one.take.row);
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
    now: i64,
) -> Result<(Vec<TakenRow>, bool), DbError> {
    let mut all = Vec::new();
    while all.len() < limit {
        let largest = if room.is_idle { u64::MAX } else { room.large.max(room.small_max) };
        let Some(one) = take(db, (queue, lane), (owner, lease_ms), 1, largest, now)?.pop() else { break };
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
        all.extend(take(db, (queue, lane), (owner, lease_ms), limit - all.len(), room.small_max, now)?);
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
pub fn renew(db: &Connection, owner: &str, lease_ms: i64, now_ms: i64) -> Result<(), DbError> {
    db.prepare_cached("UPDATE message SET lease_until = ?2 WHERE owner = ?1")?
        .execute(params![owner, now_ms + lease_ms])?;
    Ok(())
}

/// Frees everything that an owner still has in hand at its end: it was begun and not finished, so it stays counted as delivered.
pub fn free_all(db: &Connection, owner: &str) -> Result<(), DbError> {
    db.execute("UPDATE message SET owner = NULL, lease_until = 0 WHERE owner = ?1", [owner])?;
    Ok(())
}

/// A page of messages at rest behind a row, in order.
pub fn at_rest(
    db: &Connection,
    queue: &'static str,
    after: i64,
    limit: i64,
) -> Result<Vec<(Take, RestMessage)>, DbError> {
    let read = |row: &Row<'_>| {
        let (message_id, meta, body): (Option<String>, String, Vec<u8>) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let take = Take { row: row.get(0)?, fence: row.get(4)? };
        Ok((
            take,
            RestMessage {
                message_id,
                meta: meta_of(queue, &meta),
                cut: None,
                body: body.into(),
                routing_key: String::new(),
            },
        ))
    };
    let mut statement = db.prepare_cached(
        "SELECT id, message_id, meta, body, fence FROM message WHERE queue = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )?;
    let rows = statement.query_map(params![queue, after, limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Does what was decided about a message at rest; false if it does not rest there any more, or again since: somebody else let it run while a
/// person looked at it.
pub fn decided(db: &Connection, queue: &str, take: Take, verdict: &RestVerdict, now_ms: i64) -> Result<bool, DbError> {
    let Take { row, fence } = take;
    let changed = match verdict {
        RestVerdict::Keep => return Ok(true),
        RestVerdict::Drop => db
            .prepare_cached("DELETE FROM message WHERE id = ?1 AND fence = ?2 AND queue = ?3 AND owner IS NULL")?
            .execute(params![row, fence, queue])?,
        RestVerdict::Again(meta, lane) => db
            .prepare_cached(
                "UPDATE message SET queue = 'due', lane = ?4, meta = ?5, due_at = ?6, published_at = ?6, deliveries = 0 \
                 WHERE id = ?1 AND fence = ?2 AND queue = ?3 AND owner IS NULL",
            )?
            .execute(params![row, fence, queue, lane.as_str(), meta_text(meta), now_ms])?,
    };
    Ok(changed > 0)
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
pub fn depths(db: &Connection, now: i64) -> Result<Depths, DbError> {
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

/// The id of a tenant's job with this idempotency key, as events that are kept or messages tell it. No index either.
pub fn id_of_key(db: &Connection, tenant: &str, key: &str) -> Result<Option<JobId>, DbError> {
    let texts = |sql: &str| -> Result<Vec<Vec<u8>>, DbError> {
        let mut statement = db.prepare_cached(sql)?;
        let rows = statement.query_map([key], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    };
    let named = |one: &serde_json::Value| {
        let is_its = one["idempotency_key"] == key && one["tenant"].as_str().unwrap_or(Tenant::DEFAULT) == tenant;
        let id = one.get("job_id").or_else(|| one.get("id")).filter(|_| is_its)?;
        id.as_str()?.parse::<JobId>().ok()
    };
    let read = |text: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(text).ok();
    let events =
        texts("SELECT json FROM event WHERE instr(CAST(json AS TEXT), ?1) > 0 ORDER BY number DESC LIMIT 100")?;
    if let Some(id) = events.iter().filter_map(read).find_map(|event| named(&event["data"])) {
        return Ok(Some(id));
    }
    let jobs = texts("SELECT body FROM message WHERE instr(CAST(body AS TEXT), ?1) > 0 LIMIT 100")?;
    Ok(jobs.iter().filter_map(read).find_map(|job| named(&job)))
}

/// The messages of this id wherever they are; it may be one of several tenants.
pub fn waiting(db: &Connection, id: &str) -> Result<Vec<(String, RestMessage)>, DbError> {
    let mut statement =
        db.prepare_cached("SELECT queue, message_id, meta, body FROM message WHERE message_id = ?1 LIMIT 100")?;
    let read = |row: &Row<'_>| {
        let (queue, message_id, meta): (String, Option<String>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let meta = meta_of(&queue, &meta);
        Ok((
            queue,
            RestMessage {
                message_id,
                meta,
                cut: None,
                body: row.get::<_, Vec<u8>>(3)?.into(),
                routing_key: String::new(),
            },
        ))
    };
    let rows = statement.query_map([id], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// When a row was published, by the wall clock that says `now`.
pub fn published_at(published_ms: i64, now_ms: i64, now: Timestamp) -> Option<Timestamp> {
    let age = now_ms.saturating_sub(published_ms);
    Timestamp::from_millisecond(now.as_millisecond().saturating_sub(age)).ok()
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
