//! A configuration that changes under a running worker, and workers that come and go under load.

use std::{collections::BTreeSet, time::Duration};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    process,
    sink::{self, SmtpSink, StoredMessage},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

const APPLIES: &str = "The changed configuration applies";
const REFUSED: &str = "The changed configuration is refused";

fn jobs(count: usize) -> Vec<Job> {
    (0..count)
        .map(|n| story::job(if n.is_multiple_of(3) { Lane::Transactional } else { Lane::Bulk }, "ada@dest.test"))
        .collect()
}

/// Two relays, of which the only route uses one.
fn config(env: &TestEnv, other: &SmtpSink, send: &str, password: &str, level: &str) -> String {
    let other = format!(
        "[transport.other]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\n\
         [transport.third]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = 9\nusername = \"app\"\n\
         password = {{ file = \"{password}\" }}\nplaintext_auth = true\n",
        other.port()
    );
    let routes = format!(
        "[[route]]\nname = \"never\"\nwhen = {{ tenants = [\"nobody\"] }}\nsend = [\"third\", \"relay\", \"other\"]\n\
         [[route]]\nname = \"all\"\nsend = [\"{send}\"]\n"
    );
    story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &format!("{other}{routes}"))
        .replace("level = \"debug\"", &format!("level = \"{level}\""))
}

fn said(worker: &Postrider, text: &str) -> usize {
    worker.stderr().matches(text).count()
}

#[track_caller]
fn wait_for_said(worker: &Postrider, text: &str, count: usize) {
    deadline::wait_for(&format!("{count} times {text:?}"), SOON, || (said(worker, text) >= count).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {}", worker.stderr()));
}

fn ids(messages: &[StoredMessage]) -> Vec<String> {
    let id = |one: &StoredMessage| {
        let text = String::from_utf8_lossy(&one.raw).into_owned();
        text.lines().find(|line| line.starts_with("Message-ID:")).unwrap_or_default().to_owned()
    };
    messages.iter().map(id).collect()
}

/// A mounted `ConfigMap`: a link to a file behind a link to a folder, which is replaced as a whole. `same` is the text before and after.
fn as_kubernetes_does(worker: &Postrider, same: &str) {
    let folder = worker.folder();
    let file = folder.join("postrider.toml");
    let put = |target: &str, link: &str| {
        std::os::unix::fs::symlink(target, folder.join("..tmp")).unwrap();
        std::fs::rename(folder.join("..tmp"), folder.join(link)).unwrap();
    };
    let version = |name: &str, text: &str| {
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("postrider.toml"), text).unwrap();
    };
    let (applied, refused) = (said(worker, APPLIES), said(worker, REFUSED));
    version("..one", same);
    put("..one", "..data");
    put("..data/postrider.toml", "postrider.toml");
    wait_for_said(worker, APPLIES, applied + 1);
    version("..two", same);
    put("..two", "..data");
    wait_for_said(worker, APPLIES, applied + 2);
    // Gone for a moment: nothing is forgotten, and what is there again applies.
    std::fs::remove_file(&file).unwrap();
    wait_for_said(worker, REFUSED, refused + 1);
    assert!(worker.stderr().contains(&file.display().to_string()), "{}", worker.stderr());
    std::fs::write(&file, same).unwrap();
    wait_for_said(worker, APPLIES, applied + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_route_applies_under_load_and_a_broken_file_changes_nothing() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let other = SmtpSink::start(sink::Options::default()).unwrap();
    let folder = postrider_tests::folder::Folder::new("secret").unwrap();
    let password = folder.write("password", "one\n").unwrap().display().to_string();
    let worker = story::start(config(&env, &other, "relay", &password, "info")).unwrap();
    let file = worker.folder().join("postrider.toml");
    let url = env.amqp_url();
    let (first, second, third) = (jobs(400), jobs(200), jobs(50));

    // Under load: the file changes while the jobs are delivered.
    let publishing = tokio::spawn({
        let (url, first) = (url.clone(), first.clone());
        async move {
            for part in first.chunks(20) {
                story::publish(&url, part).await.unwrap();
            }
        }
    });
    env.sink().wait_for(20, SOON).unwrap();
    std::fs::write(&file, config(&env, &other, "other", &password, "info")).unwrap();
    wait_for_said(&worker, APPLIES, 1);
    publishing.await.unwrap();
    let arrived = || Some(env.sink().count().ok()? + other.count().ok()?);
    deadline::wait_for("the load", SOON, || (arrived()? == first.len()).then_some(())).unwrap();
    let before = env.sink().count().unwrap();
    story::publish(&url, &second).await.unwrap();
    deadline::wait_for("the jobs after it", SOON, || (arrived()? == first.len() + second.len()).then_some(())).unwrap();
    assert_eq!(env.sink().count().unwrap(), before, "the old route was used after the new one applied");

    // A broken file, and one that leads nowhere, are refused with their reason.
    std::fs::write(&file, "[queue\n").unwrap();
    wait_for_said(&worker, REFUSED, 1);
    std::fs::write(&file, config(&env, &other, "nowhere", &password, "info")).unwrap();
    wait_for_said(&worker, REFUSED, 2);
    assert!(worker.stderr().contains("there is no transport `nowhere`"), "{}", worker.stderr());
    story::publish(&url, &third).await.unwrap();
    let all = first.len() + second.len() + third.len();
    deadline::wait_for("the jobs after a broken file", SOON, || (arrived()? == all).then_some(())).unwrap();

    // A secret by file that changes renews its transport alone; SIGHUP reads everything again.
    std::fs::write(&file, config(&env, &other, "other", &password, "info")).unwrap();
    wait_for_said(&worker, APPLIES, 2);
    std::fs::write(&password, "another\n").unwrap();
    wait_for_said(&worker, APPLIES, 3);
    assert_eq!(said(&worker, "\"transports_replaced\":1"), 1, "{}", worker.stderr());
    process::run("kill", ["-HUP", worker.pid().to_string().as_str()], &[], SOON).unwrap();
    wait_for_said(&worker, APPLIES, 4);

    as_kubernetes_does(&worker, &config(&env, &other, "other", &password, "info"));

    // The level too.
    std::fs::write(&file, config(&env, &other, "other", &password, "error")).unwrap();
    deadline::wait_for("a silent worker", SOON, || {
        let before = said(&worker, "Sent job");
        let count = arrived()?;
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(story::publish(&url, &jobs(1))))
            .ok()?;
        deadline::wait_for("one more", SOON, || (arrived()? > count).then_some(())).ok()?;
        (said(&worker, "Sent job") == before).then_some(())
    })
    .unwrap();
    assert!(!worker.stderr().contains("was refused"), "no job failed: {}", worker.stderr());
    let all: Vec<String> =
        [env.sink().messages().unwrap(), other.messages().unwrap()].iter().flat_map(|one| ids(one)).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "sent twice");
    drop(worker);
}

#[test]
fn a_throttle_whose_name_looks_like_a_mistake_is_told_once_for_each_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let queue = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = |name: &str, rate: &str| {
        let limits = format!("[[throttle]]\nname = \"{name}\"\nrate = \"{rate}\"\n");
        story::config(&queue, &queue, 9, &format!("{ROUTE}{limits}"))
    };
    let worker = story::start_any(&config("gogle", "20/s")).unwrap();
    let warned = |name: &str| said(&worker, &format!("The throttle `{name}` names no domains"));
    // Files are looked at from here on.
    wait_for_said(&worker, "Consuming", 1);
    assert_eq!(warned("gogle"), 1, "{}", worker.stderr());
    let file = worker.folder().join("postrider.toml");
    for (times, name, rate) in [(1, "gogle", "30/s"), (2, "yaho", "30/s"), (3, "others", "30/s")] {
        std::fs::write(&file, config(name, rate)).unwrap();
        wait_for_said(&worker, APPLIES, times);
    }
    assert_eq!([warned("gogle"), warned("yaho"), warned("others")], [1, 1, 0], "{}", worker.stderr());
}

/// Publishes in the background until the jobs are used up.
fn load(url: String, jobs: Vec<Job>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        for part in jobs.chunks(10) {
            story::publish(&url, part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_under_load_lose_nothing_and_double_nothing() {
    const JOBS: usize = 1200;
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = || story::worker(&env, "").unwrap();
    let load = load(env.amqp_url(), jobs(JOBS));
    let stop = |mut worker: Postrider| {
        worker.terminate().unwrap();
        assert!(worker.wait(SOON).unwrap().success());
    };
    // A rolling restart of three.
    let mut workers: Vec<Postrider> = (0..3).map(|_| worker()).collect();
    for _ in 0..3 {
        stop(workers.remove(0));
        workers.push(worker());
    }
    // To one, to four and back.
    stop(workers.remove(0));
    stop(workers.remove(0));
    workers.extend((0..3).map(|_| worker()));
    while workers.len() > 1 {
        stop(workers.remove(0));
    }
    load.await.unwrap();
    env.sink().wait_for(JOBS, SOON).unwrap();
    stop(workers.remove(0));
    let ids = ids(&env.sink().messages().unwrap());
    let distinct = ids.iter().collect::<BTreeSet<_>>().len();
    assert_eq!((ids.len(), distinct), (JOBS, JOBS), "lost {}, duplicates {}", JOBS - distinct, ids.len() - distinct);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_the_steps_of_a_ramp_by_itself() {
    let folder = postrider_tests::folder::Folder::new("ramp").unwrap();
    let queue = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(sink::Options::default()).unwrap();
    // The second step holds in a while: a slow machine is late for the first one at most.
    let from = jiff::Timestamp::now();
    let ramp = format!(
        "{ROUTE}[limits]\ntenant_rate = {{ from = \"{from}\", every = \"8s\", steps = [\"1/h\", \"1000/s\"] }}\n"
    );
    let worker = Postrider::worker(story::config(&queue, &queue, sink.port(), &ramp)).unwrap();
    wait_for_said(&worker, APPLIES, 1);
    story::publish(&queue, &jobs(20)).await.unwrap();
    sink.wait_for(20, SOON).unwrap();
    assert_eq!(said(&worker, APPLIES), 1, "once a step");
}
