//! Puts jobs into the embedded file. Takes nothing out.

use std::path::Path;

use postrider_schemas::{Job, Meta};

use super::{
    db::Db,
    error::DbError,
    tables::{self, Fresh},
};

/// The prefix of a URL that names a file: `embedded:path/to/file.db`.
pub const SCHEME: &str = "embedded:";

/// A publisher on the embedded queue. Clones share the file's thread.
#[derive(Clone)]
pub struct EmbeddedPublisher {
    db: Db,
}

impl EmbeddedPublisher {
    /// Opens the file and makes it where it is missing.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, DbError> {
        let db = Db::open(path)?;
        tables::ensure(&db).await?;
        Ok(Self { db })
    }

    /// Publishes a job; `Ok` means that it is on the disk. Concurrent calls share a commit. `meta` carries the trace context and the
    /// expiry.
    ///
    /// A transient error means that nothing was written; publishing the same job again cannot send it twice, because its id is the same.
    pub async fn publish(&self, job: &Job, meta: &Meta) -> Result<(), DbError> {
        let fresh = Fresh::new(job, meta);
        let clock = self.db.clock().clone();
        self.db.call(move |db| fresh.insert(db, clock.now_ms())).await?;
        self.db.arrived();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, wire};

    use super::*;

    #[tokio::test]
    async fn a_published_job_is_a_row_with_its_bytes_and_headers() {
        let folder = tempfile::TempDir::new().unwrap();
        let publisher = EmbeddedPublisher::open(folder.path().join("queue.db")).await.unwrap();
        let text = br#"{"id":"0192f0c1-2b3c-7def-8000-000000000001","from":"a@example.org","to":["b@example.org"],"subject":"s","text":"t"}"#;
        let job = wire::decode(text, Some(wire::JOB_TYPE), &JobLimits::default()).unwrap();
        let meta = Meta { trace0: Some("00-1-2-01".to_owned()), ..Meta::default() };
        publisher.publish(&job, &meta).await.unwrap();
        let (body, text): (Vec<u8>, String) = publisher
            .db
            .call(|db| {
                let sql = "SELECT body, meta FROM message WHERE queue = 'jobs' AND lane = 'transactional'";
                Ok(db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
            })
            .await
            .unwrap();
        assert_eq!((body, tables::meta_of(&text)), (wire::encode(&job).to_vec(), meta));
    }
}
