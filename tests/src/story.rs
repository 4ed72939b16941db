//! What stories share: configurations, jobs, and publishing.

use std::time::Duration;

use anyhow::Result;
use postrider_producer::Publisher;
use postrider_schemas::{Job, JobLimits, JobV1, Lane, examples, wire};

/// A worker's configuration for one relay without TLS, with quick retries.
pub fn config(queue: &str, store: &str, relay_port: u16, more: &str) -> String {
    format!(
        "[queue]\nurl = \"{queue}\"\n[store]\nurl = \"{store}\"\nlease = \"2s\"\n[retry]\nschedule = [\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]\n\
         config_wait = \"2s\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n[worker]\ntransactional = 32\nbulk = 32\ndrain = \"10s\"\n\
         [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {relay_port}\ntls = \"none\"\nconnections = 8\n{more}\n"
    )
}

/// The catch-all route.
pub const ROUTE: &str = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

/// A small job to one recipient.
pub fn job(lane: Lane, to: &str) -> Job {
    job_with(|job| {
        job.lane = lane;
        job.to = vec![to.into()];
    })
}

/// A small job, changed as the story wants it.
pub fn job_with(change: impl FnOnce(&mut JobV1)) -> Job {
    let mut job = JobV1 {
        from: "The Shop <orders@shop.example>".into(),
        to: vec!["ada@customer.example".into()],
        subject: "Hello".to_owned(),
        text: Some("Hello.\n".to_owned()),
        ..JobV1::default()
    };
    change(&mut job);
    #[expect(clippy::expect_used, reason = "a story with a bad job is a mistake in the story")]
    job.parse(&JobLimits::DEFAULT).expect("a job")
}

/// Every example as a job that is due now.
pub fn examples() -> Result<Vec<(&'static str, Job)>> {
    examples::ALL
        .iter()
        .map(|(name, document)| Ok((*name, wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT)?)))
        .collect()
}

/// Publishes jobs and waits for their confirms.
pub async fn publish(url: &str, jobs: &[Job]) -> Result<()> {
    let publisher = Publisher::connect(url).await?;
    for job in jobs {
        publisher.publish(job).await?;
    }
    publisher.close().await;
    Ok(())
}

/// As long as a slow machine may take for something that is quick.
pub const SOON: Duration = Duration::from_secs(30);
