//! Templates of one tenant cannot keep the mail of others, whatever they are made of.

use std::{collections::HashMap, path::Path, time::Duration};

use postrider_schemas::{JobId, JobV1, Lane, wire::TemplateV1};
use postrider_tests::{
    bombs::{Bomb, found_out_by_running, seen_in_the_source},
    deadline,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, SOON},
};
use rusqlite::{Connection, params};

/// As long as the processor time of all bombs may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(8);

/// A bomb as a producer that does not use our library might publish it.
fn bomb_body(id: JobId, bomb: &Bomb, n: usize) -> Vec<u8> {
    let mut job = JobV1::from(&story::job(Lane::ALL[n % 2], &format!("victim-{n}@dest.example")));
    job.id = Some(id);
    job.tenant = Some("hostile".to_owned());
    job.text = None;
    job.template = Some(TemplateV1 { text: Some(bomb.source.clone()), html: None });
    job.variables.insert("x".to_owned(), vec![1, 2].into());
    serde_json::to_vec(&job).unwrap()
}

/// Puts copies of each bomb into the file; gives their ids with what they are.
fn plant(file: &Path, copies: usize) -> HashMap<String, &'static str> {
    let mut connection = Connection::open(file).unwrap();
    connection.busy_timeout(SOON).unwrap();
    let transaction = connection.transaction().unwrap();
    let mut planted = HashMap::new();
    for (n, bomb) in seen_in_the_source().iter().chain(&found_out_by_running()).enumerate() {
        for copy in 0..copies {
            let id = JobId::generate();
            let lane = Lane::ALL[copy % 2].as_str();
            transaction
                .execute(
                    "INSERT INTO message (queue, lane, message_id, type, published_at, body) VALUES ('jobs', ?, ?, ?, ?, ?)",
                    params![lane, id.to_string(), "postrider.job.v1", jiff::Timestamp::now().as_millisecond(),
                        bomb_body(id, bomb, copy + n * copies)],
                )
                .unwrap();
            planted.insert(id.to_string(), bomb.name);
        }
    }
    transaction.commit().unwrap();
    planted
}

/// `POSTRIDER_TEST_LONG` asks for 20 bombs of each kind among 2,000 jobs.
#[tokio::test(flavor = "multi_thread")]
async fn bombs_among_the_jobs_of_another_tenant_die_alone() {
    let (copies, count) = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { (20, 2000) } else { (3, 200) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), story::ROUTE);
    let mut worker = Postrider::worker(config.clone()).unwrap();
    deadline::wait_for("the ledger", SOON, || path.exists().then_some(())).unwrap();
    let jobs: Vec<_> = (0..count)
        .map(|n| {
            story::job_with(|job| {
                job.tenant = Some("shop".to_owned());
                job.lane = Lane::ALL[n % 2];
                job.to = vec![format!("customer-{n}@dest.example").into()];
                if n % 4 == 0 {
                    // One that takes a process too.
                    job.text = None;
                    let source = "Hello,\n{% for one in items %}- {{ one }}\n{% endfor %}".to_owned();
                    job.template = Some(TemplateV1 { text: Some(source), html: None });
                    job.variables.insert("items".to_owned(), vec![n, n + 1].into());
                }
            })
        })
        .collect();
    story::publish(&file, &jobs[..count / 2]).await.unwrap();
    let planted = plant(&path, copies);
    story::publish(&file, &jobs[count / 2..]).await.unwrap();

    sink.wait_for(count, LIMIT).unwrap();
    let dead = deadline::wait_for("every bomb in dead", LIMIT, || {
        let rows = story::rest("dead", &config).unwrap();
        (rows.len() >= planted.len()).then_some(rows)
    })
    .unwrap();
    assert_eq!(dead.len(), planted.len());
    let mut reasons: HashMap<&str, &str> = HashMap::new();
    for row in &dead {
        let name = planted[row["id"].as_str().unwrap()];
        assert_eq!(row["reason"], "template-limit", "{name}: {row}");
        reasons.insert(name, row["detail"].as_str().unwrap());
    }
    reasons.iter().for_each(|(name, detail)| eprintln!("{name}: {detail}"));
    let mut recipients: Vec<String> =
        sink.messages().unwrap().iter().flat_map(|one| one.recipients()).map(ToString::to_string).collect();
    recipients.sort_unstable();
    recipients.dedup();
    assert_eq!((sink.count().unwrap(), recipients.len()), (count, count), "each once");
    worker.terminate().unwrap();
    assert!(worker.wait(SOON).unwrap().success(), "the worker is the same one, and ends well");
}
