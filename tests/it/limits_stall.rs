//! A provider that answers nothing for a while: what had its token meanwhile and waited for a call does not leave in one burst when it goes on, and what
//! is over by then does not leave at all.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{Call, FakeProvider, Reaction},
    story::{self, SOON},
};

use crate::limits::jobs;

/// A second of it gives so many tokens, of which a few may be used at once.
const RATE: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_share_calls_leave_with_tokens_of_their_time_after_a_stall() {
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = format!(
        "[queue]\nurl = \"{file}\"\n[store]\nurl = \"{file}\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [worker]\nbulk = 256\n[transport.api]\nkind = \"sendgrid\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\n\
         connections = 2\nbatch_linger = \"50ms\"\nrate = \"{RATE}/s\"\n[[route]]\nname = \"all\"\nsend = [\"api\"]\n",
        api.url()
    );
    let worker = story::start_any(&config).unwrap();
    api.stall(true);
    // Two calls that are not answered are all that there may be.
    story::publish(&file, &jobs(Lane::Bulk, "first", 30)).await.unwrap();
    deadline::wait_for("both calls", SOON, || (api.calls().len() == 2).then_some(())).unwrap();
    let over = Timestamp::now() + Duration::from_secs(4);
    let short: Vec<Job> = (0..20).map(|n| short_lived(n, over)).collect();
    story::publish(&file, &short).await.unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "second", 260)).await.unwrap();
    let is_late = || (Timestamp::now() > over + Duration::from_secs(4)).then_some(());
    deadline::wait_for("a long stall", SOON, is_late).unwrap();
    let go_on = Instant::now();
    api.stall(false);
    let left = |until: Duration| -> usize {
        let is_meant = |call: &&Call| call.at > go_on && call.at < go_on + until;
        api.calls().iter().filter(is_meant).map(|call| call.job_ids().len()).sum()
    };
    let all = || api.calls().iter().flat_map(Call::job_ids).collect::<Vec<_>>();
    // All those that had a token meanwhile would be more than five times the rate.
    deadline::wait_for("what leaves later", SOON, || (left(SOON) > 5 * RATE).then_some(())).unwrap();
    let at_once = left(Duration::from_secs(1));
    let ids: HashSet<String> = all().into_iter().collect();
    let over = short.iter().filter(|job| ids.contains(&job.id().to_string())).count();
    println!("{at_once} in the first second, {over} of them over");
    assert!(at_once <= 3 * RATE, "{at_once}");
    assert_eq!(over, 0);
    deadline::wait_for("the whole blast", Duration::from_secs(90), || (all().len() >= 290).then_some(())).unwrap();
    let once: HashSet<String> = all().into_iter().collect();
    assert_eq!((all().len(), once.len()), (290, 290), "each once, and nothing that was over");
    drop(worker);
}

fn short_lived(n: usize, over: Timestamp) -> Job {
    story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.to = vec![format!("short-{n}@dest.example").as_str().into()];
        job.expires_at = Some(over);
    })
}
