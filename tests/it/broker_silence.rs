//! A broker that goes on breathing and answers nothing: nobody waits for it without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    fault_proxy::FaultProxy,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::sleep,
};

const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
/// Longer than a call may take, twice.
const ENDED: Duration = Duration::from_secs(40);

/// Stands between a client and a broker. Once muted, each connection that was made gets heartbeats and nothing else for ever, as from a broker, or a
/// thread of a library, that stands still.
struct Mute {
    port: u16,
    is_mute: Arc<AtomicBool>,
}

impl Mute {
    async fn start(broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_mute = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&is_mute);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", broker)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(up(from_client, to_server));
                tokio::spawn(down(from_server, to_client, Arc::clone(&shared)));
            }
        });
        Self { port, is_mute }
    }
}

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // Whoever is gone ends it.
    let _ = copy(&mut from, &mut to).await;
}

/// Whole frames, so that what is sent when it is muted begins where a frame does.
async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_mute: Arc<AtomicBool>) {
    let mut prefix = [0; 7];
    while from.read_exact(&mut prefix).await.is_ok() {
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]) as usize;
        let mut rest = vec![0; size + 1];
        if from.read_exact(&mut rest).await.is_err() {
            return;
        }
        if is_mute.load(Ordering::Relaxed) {
            while to.write_all(&HEARTBEAT).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
            return;
        }
        if to.write_all(&prefix).await.is_err() || to.write_all(&rest).await.is_err() {
            return;
        }
    }
}

fn port_of(url: &str) -> u16 {
    let authority = url.split_once('@').unwrap().1;
    authority.split_once(':').unwrap().1.split_once('/').unwrap().0.parse().unwrap()
}

fn by(url: &str, port: u16) -> String {
    url.replace(&format!(":{}/", port_of(url)), &format!(":{port}/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breathes_and_says_nothing_is_made_anew() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let url = env.amqp_url();
    let mute = Mute::start(port_of(&url)).await;
    let config = story::config(&by(&url, mute.port), &env.redis_url(), env.sink().port(), ROUTE);
    let mut worker = story::start(config.clone()).unwrap();
    story::publish(&url, &[story::job(Lane::Bulk, "before@dest.example")]).await.unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    // A frame has to come for a connection to notice: the deliveries of these jobs do.
    mute.is_mute.store(true, Ordering::Relaxed);
    story::publish(&url, &[story::job(Lane::Bulk, "after@dest.example")]).await.unwrap();
    worker.wait_for_output("The broker answers no more", ENDED).unwrap();
    let done = Postrider::command(["dead", "ls"]).config(config).run(ENDED).unwrap();
    assert!(!done.status.success() && done.stderr.contains("no answer"), "{}{}", done.stdout, done.stderr);
    mute.is_mute.store(false, Ordering::Relaxed);
    env.sink().wait_for(2, 2 * ENDED).unwrap();
    assert!(worker.is_running().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_right_after_their_beginning_give_each_queue_its_own() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let url = env.amqp_url();
    let proxy = FaultProxy::start(port_of(&url)).unwrap();
    let config = story::config(&by(&url, proxy.port()), &env.redis_url(), env.sink().port(), ROUTE);
    let worker = Postrider::worker(config).unwrap();
    let begun = |worker: &Postrider| worker.stderr().matches("\"Consuming\"").count();
    for count in 1..=3 {
        deadline::wait_for("consumers", SOON, || (begun(&worker) >= count).then_some(())).unwrap();
        proxy.cut_all();
    }
    deadline::wait_for("a connection for each queue", SOON, || {
        worker.stderr().contains("Each queue has a connection of its own").then_some(())
    })
    .unwrap();
    let jobs: Vec<_> = (0..20).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect();
    story::publish(&url, &jobs).await.unwrap();
    env.sink().wait_for(jobs.len(), SOON).unwrap();
    // One at a time at first, as many as usual once that goes well.
    sleep(Duration::from_secs(12)).await;
    story::publish(&url, &jobs.iter().map(|job| story::job(job.lane(), "more@dest.example")).collect::<Vec<_>>())
        .await
        .unwrap();
    env.sink().wait_for(2 * jobs.len(), SOON).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 2 * jobs.len(), "nothing twice");
}
