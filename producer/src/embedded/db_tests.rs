use std::{fs, time::Duration};

use rusqlite::{Connection, params};
use tempfile::TempDir;

use super::*;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body BLOB NOT NULL UNIQUE)";

async fn fresh() -> (TempDir, Db) {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("notes.db")).unwrap();
    db.ensure(TABLE).await.unwrap();
    (folder, db)
}

async fn put(db: &Db, body: Vec<u8>) -> Result<(), DbError> {
    db.call(move |db| {
        db.execute("INSERT INTO note (body) VALUES (?1)", params![body])?;
        Ok(())
    })
    .await
}

async fn count(db: &Db) -> i64 {
    db.call(|db| Ok(db.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?)).await.unwrap()
}

#[tokio::test]
async fn an_answer_comes_after_the_commit() {
    let (folder, db) = fresh().await;
    put(&db, b"a".to_vec()).await.unwrap();
    let other = Connection::open(folder.path().join("notes.db")).unwrap();
    let seen: i64 = other.query_row("SELECT count(*) FROM note", [], |row| row.get(0)).unwrap();
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn an_operation_that_fails_does_not_undo_its_neighbours() {
    let (_folder, db) = fresh().await;
    let bodies = [b"a", b"b", b"b", b"c"];
    let results = futures_util::future::join_all(bodies.map(|body| put(&db, body.to_vec()))).await;
    let kept = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!((kept, count(&db).await), (3, 3));
    assert!(matches!(results[2], Err(DbError::Sql(_))), "{results:?}");
}

#[tokio::test]
async fn an_operation_that_panics_is_undone_and_the_thread_goes_on() {
    let (_folder, db) = fresh().await;
    let result: Result<(), _> = db
        .call(|db| {
            db.execute("INSERT INTO note (body) VALUES (x'00')", [])?;
            panic!("on purpose")
        })
        .await;
    assert_eq!(result, Err(DbError::Panicked));
    assert_eq!(count(&db).await, 0);
}

#[tokio::test]
async fn a_full_disk_is_named_keeps_what_was_and_passes() {
    let (_folder, db) = fresh().await;
    put(&db, b"kept".to_vec()).await.unwrap();
    let limit = |pages: i64| {
        let db = db.clone();
        async move {
            db.call(move |db| Ok(db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?)).await
        }
    };
    limit(12).await.unwrap();
    let bodies: Vec<Vec<u8>> = vec![b"small".to_vec(), vec![7; 200_000], b"tiny".to_vec()];
    let results = futures_util::future::join_all(bodies.into_iter().map(|body| put(&db, body))).await;
    assert_eq!(results, [Ok(()), Err(DbError::Full), Ok(())]);
    assert_eq!(count(&db).await, 3);
    limit(1_000_000).await.unwrap();
    put(&db, vec![7; 200_000]).await.unwrap();
    assert_eq!(count(&db).await, 4);
}

#[tokio::test]
async fn a_lock_held_by_another_process_is_waited_for_and_then_named() {
    let (folder, db) = fresh().await;
    let other = Connection::open(folder.path().join("notes.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(put(&db, b"a".to_vec()).await, Err(DbError::Busy));
    other.execute_batch("ROLLBACK").unwrap();
    put(&db, b"a".to_vec()).await.unwrap();
}

#[tokio::test]
async fn one_path_has_one_thread_and_another_connection_is_noticed() {
    let (folder, db) = fresh().await;
    let same = Db::open(folder.path().join(".").join("notes.db")).unwrap();
    assert!(Arc::ptr_eq(&db.0, &same.0));
    let mut commits = db.commits();
    count(&db).await;
    commits.borrow_and_update();
    let other = Connection::open(folder.path().join("notes.db")).unwrap();
    other.execute("INSERT INTO note (body) VALUES (x'00')", []).unwrap();
    tokio::time::timeout(Duration::from_secs(2), commits.changed()).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle() {
    let (folder, db) = fresh().await;
    let mut commits = db.commits();
    drop(db);
    // The thread holds the last sender.
    let ended = async { while commits.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(2), ended).await.unwrap();
    assert_eq!(count(&Db::open(folder.path().join("notes.db")).unwrap()).await, 0);
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("letter.txt");
    let words = "Dear Sir or Madam, ".repeat(100);
    fs::write(&text, &words).unwrap();
    assert!(matches!(Db::open(&text), Err(DbError::Foreign { .. })));
    assert_eq!(fs::read_to_string(&text).unwrap(), words);

    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = fs::read(&foreign).unwrap();
    assert!(matches!(Db::open(&foreign), Err(DbError::Foreign { .. })));
    assert_eq!(fs::read(&foreign).unwrap(), before);

    let newer = folder.path().join("newer.db");
    drop(Db::open(&newer).unwrap());
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Db::open(&newer), Err(DbError::Newer { found: 99, .. })));
    assert!(matches!(Db::open(folder.path().join("missing/queue.db")), Err(DbError::Open { .. })));
    assert!(matches!(Db::open(folder.path()), Err(DbError::Open { .. })));
}
