use postrider_producer::embedded::tables;
use postrider_schemas::Meta;

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

const NOW: i64 = 1_800_000_000_000;

#[track_caller]
fn check_take(db: &Connection, owner: &str, lease_ms: i64, expected: &[u32]) -> Option<Take> {
    let taken = take(db, ("due", Some("bulk")), (owner, lease_ms), 9, u64::MAX, NOW).unwrap();
    assert_eq!(taken.iter().map(|one| one.deliveries).collect::<Vec<_>>(), expected);
    taken.first().map(|one| one.take)
}

fn parked() -> RowChange {
    RowChange::of(Settlement::Again { wait: Duration::ZERO, meta: Meta::default() }, NOW)
}

#[test]
fn a_row_whose_lease_ended_is_free_to_others_but_not_to_its_owner_who_lives() {
    let db = file();
    let first = check_take(&db, "a", -1, &[0]).unwrap();
    check_take(&db, "a", -1, &[]);
    assert_eq!(next_turn(&db, "due", None, "a").unwrap(), None, "nothing to wake up for");
    assert!(next_turn(&db, "due", None, "b").unwrap().is_some());
    let second = check_take(&db, "b", 60_000, &[1]).unwrap();
    check_take(&db, "a", 60_000, &[]);
    assert!(!settle(&db, first, "a", &RowChange::Delete, NOW).unwrap(), "it belongs to somebody else now");
    assert!(settle(&db, second, "b", &RowChange::Delete, NOW).unwrap());
}

#[test]
fn a_row_that_is_given_back_counts_as_delivered_and_rests_for_a_moment() {
    let db = file();
    let first = check_take(&db, "a", 60_000, &[0]).unwrap();
    assert!(settle(&db, first, "a", &RowChange::of(Settlement::GiveBack, NOW), NOW).unwrap());
    check_take(&db, "b", 60_000, &[]);
    db.execute("UPDATE message SET due_at = 0", []).unwrap();
    check_take(&db, "b", 60_000, &[1]);
}

#[test]
fn small_rows_pass_large_ones_for_which_there_is_no_room_and_one_that_is_larger_than_all_goes_alone() {
    let db = file();
    db.execute("DELETE FROM message", []).unwrap();
    for kilobytes in [900, 50, 50, 1, 1, 50] {
        db.execute(
            "INSERT INTO message (queue, lane, meta, due_at, published_at, body) \
             VALUES ('due', 'bulk', '{}', 0, 0, zeroblob(?1 * 1000))",
            [kilobytes],
        )
        .unwrap();
    }
    let check = |is_idle, large, expected: &[usize], may_be_more| {
        let room = Room { is_idle, large, small_max: 2000 };
        let (taken, passed_over) = take_by_size(&db, ("due", Some("bulk")), ("a", 60_000), 9, room, NOW).unwrap();
        assert_eq!(taken.iter().map(|one| one.body.len() / 1000).collect::<Vec<_>>(), expected);
        assert_eq!(passed_over, may_be_more);
        for one in taken {
            assert!(settle(&db, one.take, "a", &RowChange::Free { due_at: None }, NOW).unwrap());
        }
    };
    check(false, 0, &[1, 1], true);
    check(false, 60_000, &[50, 1, 1], true);
    check(false, 120_000, &[50, 50, 1, 1], true);
    check(true, 0, &[900, 1, 1], true);
    db.execute("DELETE FROM message", []).unwrap();
    check(true, 60_000, &[], false);
}

#[test]
fn a_delivery_whose_row_came_back_to_the_same_worker_settles_nothing() {
    let changes: [fn() -> RowChange; 4] = [
        || RowChange::Delete,
        || RowChange::Free { due_at: None },
        || RowChange::of(Settlement::Hold(Meta::default()), NOW),
        || RowChange::Split { metas: vec!["{}".to_owned(); 3] },
    ];
    for change in changes {
        let db = file();
        let stale = check_take(&db, "a", -1, &[0]).unwrap();
        // The lease of a worker that lives seems over, another one takes the row and parks it, and it comes back to the first.
        let taken_over = check_take(&db, "b", 60_000, &[1]).unwrap();
        assert!(settle(&db, taken_over, "b", &parked(), NOW).unwrap());
        let fresh = check_take(&db, "a", 60_000, &[0]).unwrap();
        let row = || {
            let text = "SELECT count(*), max(owner), max(fence), max(queue) FROM message";
            let read =
                |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, String>(3)?));
            db.query_row(text, [], read).unwrap()
        };
        assert!(!settle(&db, stale, "a", &change(), NOW).unwrap());
        assert_eq!(row(), (1, "a".to_owned(), fresh.fence, "due".to_owned()));
        assert!(settle(&db, fresh, "a", &change(), NOW).unwrap());
        assert!(!settle(&db, fresh, "a", &change(), NOW).unwrap(), "once");
    }
}

#[test]
fn a_verdict_about_a_message_that_left_its_rest_changes_nothing() {
    let again = || RestVerdict::Again(Box::default(), Lane::Bulk);
    let rest = |db: &Connection| at_rest(db, "dead", 0, 9).unwrap().first().map(|(take, _)| *take);
    for late in [again(), RestVerdict::Drop] {
        let db = file();
        let buried = || RowChange::of(Settlement::DeadLetter(Meta::default()), NOW);
        let first = check_take(&db, "a", 60_000, &[0]).unwrap();
        assert!(settle(&db, first, "a", &buried(), NOW).unwrap());
        let looked_at = rest(&db).unwrap();
        assert!(decided(&db, "dead", looked_at, &again(), NOW).unwrap());
        assert!(!decided(&db, "dead", looked_at, &late, NOW).unwrap(), "it waits to be tried");
        let second = check_take(&db, "a", 60_000, &[0]).unwrap();
        assert!(!decided(&db, "dead", looked_at, &late, NOW).unwrap(), "it is being tried");
        assert!(settle(&db, second, "a", &buried(), NOW).unwrap());
        assert!(!decided(&db, "dead", looked_at, &late, NOW).unwrap(), "it came to rest for another reason since");
        assert!(decided(&db, "dead", rest(&db).unwrap(), &late, NOW).unwrap());
    }
}

#[test]
fn a_wait_is_told_by_the_clock_of_the_file() {
    let change = RowChange::of(Settlement::Again { wait: Duration::from_secs(5), meta: Meta::default() }, NOW);
    assert!(matches!(change, RowChange::Move { due_at, .. } if due_at == NOW + 5000));
    let year = Settlement::Again { wait: Duration::from_hours(365 * 24), meta: Meta::default() };
    let looked_at_again = NOW + i64::try_from(postrider_schemas::ladder::WAIT_MAX.as_millis()).unwrap();
    let change = RowChange::of(year, NOW);
    assert!(matches!(change, RowChange::Move { due_at, .. } if due_at == looked_at_again));
    let wall: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(published_at(NOW - 3000, NOW, wall), Some(wall - Duration::from_secs(3)));
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
        next.contains("message_free (queue=? AND lane=?)") && next.contains("message_by_lease (queue=? AND lane=?)"),
        "{next}"
    );
    assert!(!next.contains("TEMP B-TREE"), "the first one is enough: {next}");
}

#[test]
fn depths_read_the_index_and_tell_what_waits_for_how_long_and_what_is_parked() {
    let db = file();
    let now = NOW;
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
    let depths = depths(&db, NOW).unwrap();
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
