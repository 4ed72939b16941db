//! The harness keeps its own promises: parts start, break and come back as they say, and nothing is left of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use postrider_schemas::Lane;
use postrider_tests::{
    aiosmtpd::Tls,
    deadline::{wait_for, wait_for_async},
    fault_proxy::{End, FaultProxy, Faults, Flow},
    folder::Folder,
    log_check::lines_with_addresses,
    postrider::Postrider,
    process::{self, Process, Spec},
    rabbitmq::{Broker, Depth, Rabbit, Vhost},
    redis::{Database, Redis},
    redis_fleet::{RedisCluster, RedisSentinel},
    sink::{Options, SmtpSink},
    story,
    test_env::{EnvSpec, Server, TestEnv, assert_nothing_left},
};

const SOON: Duration = Duration::from_secs(20);

async fn channel(url: &str) -> Result<(Connection, Channel)> {
    // lapin does not limit a connect by itself.
    let connect = Connection::connect(url, ConnectionProperties::default());
    let connection = tokio::time::timeout(SOON, connect).await??;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn declare_quorum(channel: &Channel, queue: &str) -> Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    Ok(())
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> Result<()> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let publishing = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, properties);
    ensure!(publishing.await?.await?.is_ack(), "not confirmed");
    Ok(())
}

async fn take_one(channel: &Channel, queue: &str) -> Result<Vec<u8>> {
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let delivery = tokio::time::timeout(SOON, consumer.next()).await?.context("the consumer ended")??;
    ensure!(delivery.ack(BasicAckOptions::default()).await?, "the acknowledgement was not sent");
    Ok(delivery.data)
}

#[tokio::test]
async fn a_fresh_vhost_of_the_shared_broker_carries_a_message_and_tells_its_depth() -> Result<()> {
    let vhost = Broker::shared()?.vhost()?;
    let (connection, channel) = channel(&vhost.url()).await?;
    declare_quorum(&channel, "letters").await?;
    publish(&channel, "letters", b"dear reader").await?;
    let one = Some(Depth { ready: 1, unacked: 0 });
    wait_for("a depth of one", SOON, || (vhost.queue_depths().ok()?.get("letters").copied() == one).then_some(()))?;
    assert_eq!(take_one(&channel, "letters").await?, b"dear reader");
    vhost.delete_queue("letters")?;
    assert!(vhost.queue_depths()?.is_empty());
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[tokio::test]
async fn two_vhosts_do_not_see_each_other() -> Result<()> {
    let (one, other) = (Broker::shared()?.vhost()?, Broker::shared()?.vhost()?);
    let (connection, channel) = channel(&one.url()).await?;
    declare_quorum(&channel, "letters").await?;
    assert_eq!(one.queue_depths()?.len(), 1);
    assert!(other.queue_depths()?.is_empty());
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_its_messages_and_a_blocked_one_says_so() -> Result<()> {
    let Some(mut rabbit) = Rabbit::start_or_skip("a killed broker comes back")? else { return Ok(()) };
    let folder = rabbit.folder().to_owned();
    let (_connection, before) = channel(&rabbit.url()).await?;
    declare_quorum(&before, "letters").await?;
    publish(&before, "letters", b"kept").await?;
    rabbit.kill9()?;
    assert!(channel(&rabbit.url()).await.is_err());
    rabbit.restart()?;

    let (connection, after) = channel(&rabbit.url()).await?;
    assert_eq!(take_one(&after, "letters").await?, b"kept");
    rabbit.block()?;
    // The broker blocks whoever publishes during the alarm; this one is not confirmed before it ends.
    let late = publish(&after, "letters", b"late");
    tokio::pin!(late);
    let blocked = wait_for_async("a blocked connection", SOON, async || {
        tokio::select! {
            _ = &mut late => None,
            () = tokio::time::sleep(Duration::from_millis(20)) => connection.status().blocked().then_some(()),
        }
    });
    blocked.await?;
    rabbit.unblock()?;
    tokio::time::timeout(SOON, late).await??;

    rabbit.close_all_connections()?;
    let closed = async || (!connection.status().connected()).then_some(());
    wait_for_async("the connection closed by the broker", SOON, closed).await?;
    drop(rabbit);
    assert_nothing_left(&folder);
    Ok(())
}

#[test]
fn redis_in_memory_forgets_and_durable_redis_remembers() -> Result<()> {
    for (durable, expected) in [(false, ""), (true, "1")] {
        let mut redis = if durable { Redis::start_durable()? } else { Redis::start()? };
        redis.cli(&["SET", "key", "1"])?;
        redis.kill9()?;
        assert!(redis.cli(&["PING"]).is_err());
        redis.restart()?;
        assert_eq!(redis.cli(&["GET", "key"])?, expected);
        redis.cli(&["SET", "key", "2"])?;
        redis.flush()?;
        assert_eq!(redis.cli(&["DBSIZE"])?, "0");
        let folder = redis.folder().to_owned();
        drop(redis);
        assert_nothing_left(&folder);
    }
    Ok(())
}

#[test]
fn databases_of_the_shared_redis_do_not_see_each_other() -> Result<()> {
    let (one, other) = (Database::fresh()?, Database::fresh()?);
    one.cli(&["SET", "key", "1"])?;
    assert_eq!(other.cli(&["DBSIZE"])?.trim(), "0");
    one.flush()?;
    assert_eq!(one.cli(&["DBSIZE"])?.trim(), "0");
    Ok(())
}

#[test]
fn a_redis_cluster_spreads_keys_over_three_masters() -> Result<()> {
    let mut cluster = RedisCluster::start()?;
    assert!(cluster.url().starts_with("redis+cluster://127.0.0.1:"));
    let first = cluster.nodes()[0].port().to_string();
    for key in 0..30 {
        let (key, limit) = (format!("key{key}"), Duration::from_secs(10));
        process::run("redis-cli", ["-c", "-e", "-p", &first, "SET", &key, "1"], &[], limit)?;
    }
    for node in cluster.nodes() {
        assert_ne!(node.cli(&["DBSIZE"])?, "0");
    }
    Ok(())
}

#[test]
fn sentinel_makes_the_replica_master_with_what_was_written() -> Result<()> {
    let mut fleet = RedisSentinel::start(1)?;
    let old = fleet.master_port()?;
    fleet.master()?.cli(&["SET", "key", "1"])?;
    assert_eq!(fleet.master()?.cli(&["WAIT", "1", "5000"])?, "1");
    fleet.failover()?;
    assert_ne!(fleet.master_port()?, old);
    assert_eq!(fleet.master()?.cli(&["GET", "key"])?, "1");
    let folders: Vec<_> = fleet.folders().into_iter().map(std::path::Path::to_owned).collect();
    drop(fleet);
    folders.iter().for_each(|folder| assert_nothing_left(folder));
    Ok(())
}

/// A server that sends back what it gets, on every connection until its peer ends it.
async fn echo(listener: tokio::net::TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await
        });
    }
}

#[tokio::test]
async fn the_fault_proxy_delays_cuts_swallows_and_half_closes() -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let proxy = FaultProxy::start(listener.local_addr()?.port())?;
    let server = tokio::spawn(echo(listener));
    let connect = async || tokio::net::TcpStream::connect(("127.0.0.1", proxy.port())).await;
    let mut buffer = [0_u8; 5];

    proxy.set(Faults::delay_replies(Duration::from_millis(200)));
    let mut stream = connect().await?;
    let start = std::time::Instant::now();
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut buffer).await?;
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(&buffer, b"hello");

    let hole = Faults::black_hole();
    proxy.set(hole);
    stream.write_all(b"lost!").await?;
    assert!(tokio::time::timeout(Duration::from_millis(200), stream.read_exact(&mut buffer)).await.is_err());
    proxy.set(Faults::default());
    stream.write_all(b"again").await?;
    stream.read_exact(&mut buffer).await?;
    assert_eq!(&buffer, b"again");
    proxy.cut_all();
    assert!(tokio::time::timeout(SOON, stream.read_exact(&mut buffer)).await?.is_err());

    proxy.set(Faults::cut_after_sent(3));
    let mut stream = connect().await?;
    stream.write_all(b"hello").await?;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await?;
    assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));

    let half = Flow { end: Some((5, End::HalfClose)), ..Flow::default() };
    proxy.set(Faults { to_client: half, ..Faults::default() });
    let mut stream = connect().await?;
    stream.write_all(b"hello world").await?;
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await??;
    assert_eq!(rest, b"hello");
    stream.write_all(b"still open").await?;

    proxy.set(Faults { refuse: true, ..Faults::default() });
    // The reset may come while the client still connects.
    if let Ok(mut refused) = connect().await {
        assert!(!matches!(tokio::time::timeout(SOON, refused.read(&mut buffer)).await?, Ok(1..)));
    }
    assert_eq!(proxy.connections(), 4);
    server.abort();
    Ok(())
}

#[test]
fn a_whole_world_starts_with_one_verb_and_leaves_nothing() -> Result<()> {
    let parts = EnvSpec { redis: Server::Own, postfix: true, aiosmtpd: Some(Tls::StartTls), ..EnvSpec::usual() };
    let env = TestEnv::start(&parts)?;
    let folders = env.folders();
    assert_eq!(folders.len(), 4);
    assert!(folders.iter().all(|folder| folder.exists()));
    assert!(env.amqp_url().starts_with("amqp://") && env.redis_url().starts_with("redis://"));
    drop(env);
    folders.iter().for_each(|folder| assert_nothing_left(folder));
    Ok(())
}

#[test]
fn children_and_folders_go_when_the_test_program_is_killed() -> Result<()> {
    // The same test, started as a program of its own with this variable, is the one that is killed.
    if let Some(file) = std::env::var_os("HARNESS_KILL_ME") {
        let sink = SmtpSink::start(Options::default())?;
        let redis = Redis::start()?;
        let ready = std::path::PathBuf::from(file);
        let lines = format!("{}\n{}\n", sink.folder().display(), redis.folder().display());
        std::fs::write(ready.with_extension("part"), lines)?;
        std::fs::rename(ready.with_extension("part"), ready)?;
        return wait_for("a kill that never came", Duration::from_mins(1), || None);
    }
    let folder = Folder::new("killed")?;
    let ready = folder.path().join("ready");
    let spec = Spec::new("victim", std::env::current_exe()?, folder.path())?
        .args(["--exact", "harness::children_and_folders_go_when_the_test_program_is_killed"])
        .env("HARNESS_KILL_ME", &ready);
    let mut victim = Process::start_ready(spec, Duration::from_mins(1), || ready.exists())?;
    let inner = std::fs::read_to_string(&ready)?;
    let inner: Vec<_> = inner.lines().map(std::path::Path::new).collect();
    assert_eq!(inner.len(), 2);
    assert!(inner.iter().all(|folder| folder.exists()));
    victim.kill9()?;
    wait_for("the watchdog's work", SOON, || inner.iter().all(|folder| !folder.exists()).then_some(()))?;
    inner.iter().for_each(|folder| assert_nothing_left(folder));
    Ok(())
}

#[test]
fn a_part_that_does_not_start_says_so_with_its_log() -> Result<()> {
    let folder = Folder::new("broken")?;
    let spec = Spec::new("broken", "sh", folder.path())?.args(["-c", "echo out of paper >&2; exit 3"]);
    let error = Process::start_ready(spec, SOON, || false).err().context("it started")?;
    let text = format!("{error:#}");
    assert!(
        text.contains("broken ended") && text.contains("exit status: 3") && text.contains("out of paper"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_program_is_built_and_run() -> Result<()> {
    let finished = Postrider::command(["--version"]).run(Duration::from_secs(20))?;
    assert!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

#[test]
fn addresses_in_a_log_are_found_and_other_signs_are_not() {
    let found = |text| !lines_with_addresses(text).is_empty();
    assert!(found("sent to Ada <ada@example.com>"));
    assert!(found("x=ada.l+tag@sub.example.co.uk,"));
    assert!(found("ada@bücher.example"));
    assert!(found("amqp://guest:guest@127.0.0.1:5672/"));
    assert!(found("root@localhost"));
    assert!(found("root@[10.0.0.1]"));
    assert!(!found("lapin@4.12.3"));
    assert!(!found("a @ b"));
    assert!(!found("job 01890a5d-ac96-774b-bcce-b302099a8057 to a domain of group google, attempt 1"));
    assert_eq!(lines_with_addresses("fine\na@b.test\n"), [(2, "a@b.test")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_story_leaves_in_its_queues_is_not_there_for_the_next() {
    let names = |env: &TestEnv| env.vhost().queue_depths().unwrap().into_keys().collect::<Vec<_>>();
    let mut seen: Vec<Vec<String>> = Vec::new();
    for leaves_a_job in [true, false, false, true, false] {
        let env = TestEnv::start(&EnvSpec { rabbit: Server::Shared, ..EnvSpec::default() }).unwrap();
        story::declare(&env).unwrap();
        assert!(env.vhost().queue_depths().unwrap().values().all(|depth| depth.total() == 0));
        seen.push(names(&env));
        if leaves_a_job {
            story::publish(&env.amqp_url(), &[story::job(Lane::Bulk, "ada@dest.example")]).await.unwrap();
        } else {
            env.vhost().delete_queue(&seen[0][0]).unwrap();
        }
        let name = env.vhost().name().to_owned();
        drop(env);
        wait_for("a virtual host that may be used again", SOON, || Vhost::is_left(&name).then_some(())).unwrap();
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1] && pair[0].len() > 50), "{seen:?}");
}
