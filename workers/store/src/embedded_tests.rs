use postrider_schemas::{JobId, Tenant, job::Identity, payload_hash::PayloadHash};

use super::{records::SWEEP_MAX, *};
use crate::{Store, ledger::RecordState};

type Tested = Result<(), Box<dyn std::error::Error>>;

fn memory() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    make_tables(&db, 1000).unwrap();
    db
}

fn record(state: RecordState) -> Record {
    Record {
        state,
        generation: 3,
        fence: (1 << 49) - 1,
        holder: "w/1:2".to_owned(),
        lease_end_ms: 77,
        payload_hash: "ab".repeat(16),
        note: "again \u{e9}".to_owned(),
    }
}

fn request() -> ClaimRequest {
    ClaimRequest {
        key: LedgerKey::of(&Identity::of_id(&Tenant::default(), JobId(uuid::Uuid::now_v7()))),
        payload_hash: PayloadHash::default(),
        generation: 0,
        redelivered: false,
        published_at: None,
    }
}

#[test]
fn every_state_is_read_as_it_was_written() {
    let db = memory();
    let ends = Final::ALL.map(RecordState::Final);
    let rest =
        [RecordState::Claimed, RecordState::Submitting, RecordState::Decided, RecordState::Parked, RecordState::Alias];
    for state in ends.into_iter().chain(rest) {
        write(&db, "i:1", &record(state), 2000).unwrap();
        assert_eq!(read(&db, "i:1", 1999), Ok(Some(record(state))));
    }
}

#[test]
fn a_record_past_its_life_is_absent_before_it_is_removed() {
    let db = memory();
    write(&db, "i:1", &record(RecordState::Claimed), 2000).unwrap();
    write(&db, "i:2", &record(RecordState::Claimed), 2001).unwrap();
    assert_eq!(read(&db, "i:1", 2000), Ok(None));
    assert_eq!((sweep(&db, 2000), sweep(&db, 2000)), (Ok(1), Ok(0)));
    assert!(read(&db, "i:2", 2000).unwrap().is_some());
}

#[test]
fn a_removal_is_bounded() {
    let db = memory();
    for n in 0..=SWEEP_MAX {
        write(&db, &format!("i:{n}"), &record(RecordState::Parked), 5).unwrap();
    }
    assert_eq!((sweep(&db, 5), sweep(&db, 5)), (Ok(SWEEP_MAX as usize), Ok(1)));
}

#[test]
fn the_epoch_stays_until_the_records_are_gone() {
    let db = memory();
    make_tables(&db, 5000).unwrap();
    assert_eq!(epoch(&db, 6000), Ok(1000));
    db.execute_batch("DROP TABLE ledger").unwrap();
    make_tables(&db, 7000).unwrap();
    assert_eq!(epoch(&db, 8000), Ok(7000));
    db.execute_batch("DELETE FROM ledger_epoch").unwrap();
    assert_eq!(epoch(&db, 9000), Ok(9000));
}

#[test]
fn an_unknown_state_is_refused_and_not_taken_for_absent() {
    let db = memory();
    write(&db, "i:1", &record(RecordState::Claimed), 2000).unwrap();
    db.execute_batch("UPDATE ledger SET state = 'zombie'").unwrap();
    let error = explain(&read(&db, "i:1", 1).unwrap_err());
    assert!(!error.is_down() && !error.to_string().contains("zombie"), "{error}");
}

#[tokio::test]
async fn what_one_process_wrote_is_there_for_the_next_one() -> Tested {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("ledger.db").display());
    let job = request();
    let store = Store::connect(&url, StoreOptions::default()).await?;
    let Claim::Go(lease) = store.claim(&job).await? else { panic!("a fresh job") };
    assert_eq!(store.finish(lease, Final::Sent).await?, crate::Finished::Recorded);
    drop(store);
    let store = Store::connect(&url, StoreOptions::default()).await?;
    assert!(matches!(store.claim(&job).await?, Claim::Settled(Final::Sent)));
    Ok(())
}

#[tokio::test]
async fn one_of_many_claims_at_once_gets_the_right() -> Tested {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("ledger.db").display());
    let store = Store::connect(&url, StoreOptions::default()).await?;
    let job = request();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, job) = (store.clone(), job.clone());
            tokio::spawn(async move { matches!(store.claim(&job).await, Ok(Claim::Go(_))) })
        })
        .collect();
    let mut rights = 0;
    for task in tasks {
        rights += u32::from(task.await?);
    }
    assert_eq!(rights, 1);
    Ok(())
}

#[tokio::test]
async fn a_locked_file_is_down_and_found_when_it_is_free() -> Tested {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ledger.db");
    let store = Store::connect(&format!("embedded:{}", file.display()), StoreOptions::default()).await?;
    let other = Connection::open(&file)?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    let error = store.claim(&request()).await.err().ok_or("locked")?;
    assert!(error.is_down() && !store.is_up() && error.to_string().contains("locked"), "{error}");
    other.execute_batch("ROLLBACK")?;
    tokio::time::timeout(Duration::from_secs(20), store.back()).await?;
    assert!(store.is_up() && matches!(store.claim(&request()).await?, Claim::Go(_)));
    Ok(())
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_said_at_once() -> Tested {
    let folder = tempfile::tempdir()?;
    let foreign = folder.path().join("notes.txt");
    std::fs::write(&foreign, "not a database, but somebody's notes".repeat(100))?;
    for path in [String::new(), format!("{}/no/such/folder.db", folder.path().display()), foreign.display().to_string()]
    {
        let error = Store::connect(&format!("embedded:{path}"), StoreOptions::default()).await.err().ok_or("opened")?;
        assert!(!error.is_down() && error.to_string().contains("store.url"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn the_record_of_a_postponed_job_outlives_its_time() -> Tested {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("store.db");
    let store = Store::connect(&format!("embedded:{}", file.display()), StoreOptions::default()).await?;
    let until = Timestamp::now() + Duration::from_hours(100 * 24);
    store.postpone(&request().key, until, "send_at").await?;
    let expires_ms: i64 = Connection::open(&file)?.query_row("SELECT expires_ms FROM ledger", [], |row| row.get(0))?;
    assert!(expires_ms > until.as_millisecond(), "{expires_ms}");
    Ok(())
}
