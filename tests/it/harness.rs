//! The harness keeps its own promises: parts start, break and come back as they say, and nothing is left of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use postrider_tests::aiosmtpd::{Aiosmtpd, Tls};
use postrider_tests::deadline::{wait_for, wait_for_async};
use postrider_tests::fault_proxy::{End, FaultProxy, Faults, Flow};
use postrider_tests::folder::Folder;
use postrider_tests::log_check::lines_with_addresses;
use postrider_tests::mail::Mail;
use postrider_tests::postfix::{self, Postfix};
use postrider_tests::postrider::Postrider;
use postrider_tests::process::{self, Process, Spec};
use postrider_tests::rabbitmq::{Broker, Depth, Rabbit};
use postrider_tests::redis::{Database, Redis};
use postrider_tests::redis_fleet::{RedisCluster, RedisSentinel};
use postrider_tests::sink::{Fault, Options, SmtpSink, StoredMessage};
use postrider_tests::world::{Parts, Server, World, assert_nothing_left};

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

/// Sends one message with swaks; its output, and whether it was taken.
fn swaks(args: &[&str]) -> Result<String> {
    let limit = Duration::from_secs(30);
    let common = ["--from", "a@from.test", "--header", "Subject: hello", "--body", "first\n.dot\nlast"];
    process::run("swaks", common.iter().chain(args), &[], limit)
}

#[test]
fn the_sink_stores_what_came_over_the_line() -> Result<()> {
    let sink = SmtpSink::start(Options::default())?;
    let server = format!("127.0.0.1:{}", sink.port());
    swaks(&["--server", &server, "--to", "b@dest.test,c@dest.test"])?;
    let messages = sink.wait_for(1, SOON)?;
    assert_eq!(messages[0].sender(), "a@from.test");
    assert_eq!(messages[0].recipients(), ["b@dest.test", "c@dest.test"]);
    let mail = Mail::parse(&messages[0].raw)?;
    assert_eq!((mail.subject.as_deref(), mail.text.as_deref()), (Some("hello"), Some("first\n.dot\nlast")));
    assert_eq!(mail.header("x-mailer").map(|mailer| mailer.starts_with("swaks")), Some(true));
    Ok(())
}

#[test]
fn each_fault_of_the_sink_does_what_it_says() -> Result<()> {
    // swaks' status: 0 taken, 24 MAIL refused, 23 RCPT refused, 25 DATA refused, 26 refused after the dot, 6 lost, 21 no EHLO.
    for (fault, said, stored) in [
        (Fault::DropAfter("."), "Remote host closed connection unexpectedly", 1),
        (Fault::Soft("."), "<** 450 4.3.0", 1),
        (Fault::Hard("."), "<** 500 5.3.0", 1),
        (Fault::Hard("RCPT"), "<** 500 5.3.0", 0),
        (Fault::SoftReply("MAIL", "421 4.7.0 slow down"), "<** 421 4.7.0 slow down", 0),
        (Fault::HardReply("RCPT", "550 5.1.1 nobody"), "<** 550 5.1.1 nobody", 0),
        (Fault::Closing("RCPT"), "<** 421", 0),
        (Fault::DropAfter("RCPT"), "Remote host closed connection unexpectedly", 0),
        (Fault::LateData(1), "<-  250", 1),
        (Fault::Late("MAIL", 1), "<-  250", 1),
        (Fault::NoEsmtp, "HELO", 1),
    ] {
        let sink = SmtpSink::start(fault.clone())?;
        let server = format!("127.0.0.1:{}", sink.port());
        let output = match swaks(&["--server", &server, "--to", "b@dest.test"]) {
            Ok(output) => output,
            Err(error) => format!("{error:#}"),
        };
        assert!(output.contains(said), "{fault:?}: {output}");
        wait_for("what is stored", SOON, || (sink.count().ok()? == stored).then_some(()))
            .with_context(|| format!("{fault:?}: {:?} stored", sink.count()))?;
    }
    Ok(())
}

#[test]
fn a_stopped_sink_comes_back_with_its_messages() -> Result<()> {
    let mut sink = SmtpSink::start(Options::default())?;
    let server = format!("127.0.0.1:{}", sink.port());
    swaks(&["--server", &server, "--to", "b@dest.test"])?;
    sink.kill9()?;
    assert!(swaks(&["--server", &server, "--to", "b@dest.test"]).is_err());
    sink.restart()?;
    swaks(&["--server", &server, "--to", "b@dest.test"])?;
    assert_eq!(sink.wait_for(2, SOON)?.len(), 2);
    Ok(())
}

#[test]
fn a_message_that_stops_half_way_is_not_counted() -> Result<()> {
    use std::io::{BufRead as _, BufReader, Write as _};
    let sink = SmtpSink::start(Options::default())?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", sink.port()))?;
    stream.set_read_timeout(Some(SOON))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    replies.read_line(&mut line)?;
    for command in ["HELO x", "MAIL FROM:<a@from.test>", "RCPT TO:<b@dest.test>", "DATA"] {
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        replies.read_line(&mut line)?;
    }
    stream.write_all(b"Subject: half\r\n\r\nhalf\r\n")?;
    assert_eq!(sink.count()?, 0, "{line}");
    stream.write_all(b".\r\n")?;
    replies.read_line(&mut line)?;
    assert_eq!(sink.wait_for(1, SOON)?.len(), 1);
    Ok(())
}

#[test]
fn postfix_demands_tls_and_a_password_and_relays_to_the_sink() -> Result<()> {
    let world = World::start(&Parts { sink: Some(Options::default()), postfix: true, ..Parts::default() })?;
    let postfix = world.postfix();
    let ca = postfix.ca_file().display().to_string();
    let submission = format!("localhost:{}", postfix.submission);
    let trusting = ["--tls-verify", "--tls-ca-path", &ca, "--auth-user", postfix::USER];
    let good = [&trusting[..], &["--auth-password", postfix::PASSWORD]].concat();
    let to = |name| ["--to", name];
    let starttls = ["-tls", "--server", &submission, "--auth", "PLAIN"];

    swaks(&[&good[..], &starttls, &to("submission@dest.test")].concat())?;
    let implicit = format!("localhost:{}", postfix.implicit);
    let on_connect = ["--tls-on-connect", "--server", &implicit, "--auth", "LOGIN"];
    swaks(&[&good[..], &on_connect, &to("implicit@dest.test")].concat())?;
    let plain = format!("localhost:{}", postfix.plain);
    swaks(&["--server", &plain, "--to", "plain@dest.test"])?;
    let messages = world.sink().wait_for(3, SOON)?;
    let mut recipients: Vec<&str> = messages.iter().flat_map(StoredMessage::recipients).collect();
    recipients.sort_unstable();
    assert_eq!(recipients, ["implicit@dest.test", "plain@dest.test", "submission@dest.test"]);

    let refused = |args: &[&str], said: &str| -> Result<()> {
        let error = swaks(args).err().context("it was taken")?;
        ensure!(format!("{error:#}").contains(said), "no {said} in {error:#}");
        Ok(())
    };
    refused(&["--server", &submission, "--to", "b@dest.test"], "530 5.7.0")?;
    let wrong = [&trusting[..], &starttls, &["--auth-password", "wrong"], &to("b@dest.test")].concat();
    refused(&wrong, "535 5.7.8")?;
    refused(&[&good[..], &starttls, &to("nouser@dest.test")].concat(), "550 5.1.1")?;
    let greet = "import smtplib, ssl, sys\n\
                 trust = ssl.create_default_context(cafile=sys.argv[1])\n\
                 smtplib.SMTP_SSL(sys.argv[2], int(sys.argv[3]), context=trust, timeout=10).quit()";
    let port = postfix.implicit.to_string();
    let trusts = |name: &str| process::run("python3", ["-c", greet, &ca, name, &port], &[], SOON);
    trusts("localhost")?;
    ensure!(format!("{:#}", trusts("127.0.0.1").err().context("trusted under another name")?).contains("mismatch"));

    let limited = format!("localhost:{}", postfix.limited);
    let on_limited = ["-tls", "--server", &limited, "--auth", "PLAIN"];
    for _ in 0..3 {
        swaks(&[&good[..], &on_limited, &to("limited@dest.test")].concat())?;
    }
    refused(&[&good[..], &on_limited, &to("limited@dest.test")].concat(), "450 4.7.1")?;
    Ok(())
}

#[test]
fn a_second_postfix_lives_beside_the_first_and_greylists() -> Result<()> {
    let world = World::start(&Parts { sink: Some(Options::default()), postfix: true, ..Parts::default() })?;
    let options = postfix::Options { greylisting: true, ..postfix::Options::to(world.sink().port()) };
    let mut second = Postfix::start_with(&options)?;
    let server = format!("localhost:{}", second.greylisted);
    let auth = ["-tls", "--auth", "PLAIN", "--auth-user", postfix::USER, "--auth-password", postfix::PASSWORD];
    let args = [&auth[..], &["--server", &server, "--to", "b@dest.test"]].concat();
    assert!(format!("{:#}", swaks(&args).err().context("not greylisted")?).contains("450 4.2.0"));
    wait_for("the end of greylisting", SOON, || swaks(&args).ok())?;
    world.sink().wait_for(1, SOON)?;
    second.stop()?;
    assert!(swaks(&args).is_err());
    second.restart()?;
    swaks(&args)?;
    world.sink().wait_for(2, SOON)?;
    let folder = second.folder().to_owned();
    drop(second);
    assert_nothing_left(&folder);
    Ok(())
}

#[test]
fn the_scripted_relay_does_what_the_recipient_says() -> Result<()> {
    for (tls, option, authenticated) in
        [(Tls::None, None, false), (Tls::StartTls, Some("-tls"), true), (Tls::Implicit, Some("--tls-on-connect"), true)]
    {
        let relay = Aiosmtpd::start(tls)?;
        let server = format!("localhost:{}", relay.port());
        let ca = relay.ca_file().display().to_string();
        let mut base = vec!["--server", &server];
        base.extend(option);
        if authenticated {
            base.extend(["--tls-verify", "--tls-ca-path", &ca, "--auth", "PLAIN"]);
            base.extend(["--auth-user", postfix::USER, "--auth-password", postfix::PASSWORD]);
        }
        let send = |to: &str| match swaks(&[&base[..], &["--to", to]].concat()) {
            Ok(output) => output,
            Err(error) => format!("{error:#}"),
        };
        for (to, said) in [
            ("ok@dest.test", " 250 2.0.0 queued as 1"),
            ("perm@dest.test", "550 5.1.1"),
            ("once@dest.test", "451 4.7.1"),
            ("once@dest.test", "250 2.0.0 queued as 2"),
            ("421@dest.test", "421 4.3.2"),
            ("lost@dest.test", "Remote host closed connection unexpectedly"),
            ("reject@dest.test", "554 5.6.0"),
        ] {
            let output = send(to);
            assert!(output.contains(said), "{tls:?} {to}: {output}");
        }
        let messages = relay.wait_for(3, SOON)?;
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[2].recipients(), ["lost@dest.test"]);
        assert_eq!(messages[0].sender(), "a@from.test");
        assert_eq!(Mail::parse(&messages[0].raw)?.text.as_deref(), Some("first\n.dot\nlast"));
    }
    Ok(())
}

/// A server that sends back what it gets, `count` connections, until the peer ends each.
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
    let parts = Parts { redis: Server::Own, postfix: true, aiosmtpd: Some(Tls::StartTls), ..Parts::usual() };
    let world = World::start(&parts)?;
    let folders = world.folders();
    assert_eq!(folders.len(), 4);
    assert!(folders.iter().all(|folder| folder.exists()));
    assert!(world.amqp_url().starts_with("amqp://") && world.redis_url().starts_with("redis://"));
    drop(world);
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

#[test]
fn a_stored_message_is_parsed_to_what_was_sent() -> Result<()> {
    let stored = "X-Client-Addr: 127.0.0.1\nX-Mail-Args: <a@from.test> SIZE=10\nX-Rcpt-Args: <b@dest.test>\nX-Rcpt-Args: <c@dest.test>\n\
                  Received: from x ([127.0.0.1])\n\tby smtp-sink;\n\ttoday\n\
                  Message-ID: <1@from.test>\nFrom: =?utf-8?q?J=C3=BCrg?= <a@from.test>\nTo: b@dest.test\nCc: c@dest.test\nSubject: =?utf-8?b?w6TDtg==?=\n\
                  X-Long: one\n two\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=m\n\n\
                  --m\nContent-Type: multipart/alternative; boundary=a\n\n\
                  --a\nContent-Type: text/plain; charset=utf-8\n\nplain\n\n--a\nContent-Type: text/html; charset=utf-8\n\n<p>rich</p>\n\n--a--\n\
                  --m\nContent-Type: application/pdf; name=x.pdf\nContent-Disposition: attachment; filename=x.pdf\nContent-Transfer-Encoding: base64\n\nJVBERg==\n\
                  --m\nContent-Type: image/png\nContent-Disposition: inline\nContent-ID: <logo@x>\nContent-Transfer-Encoding: base64\n\niVBORw==\n\
                  --m--\n\n";
    let message = StoredMessage::parse(stored.as_bytes());
    assert_eq!((message.sender(), message.recipients()), ("a@from.test", vec!["b@dest.test", "c@dest.test"]));
    let mail = Mail::parse(&message.raw)?;
    assert_eq!(mail.message_id.as_deref(), Some("1@from.test"));
    assert_eq!((mail.from[0].name.as_deref(), mail.from[0].address.as_str()), (Some("Jürg"), "a@from.test"));
    assert_eq!((mail.to[0].address.as_str(), mail.cc[0].address.as_str()), ("b@dest.test", "c@dest.test"));
    assert_eq!(mail.subject.as_deref(), Some("äö"));
    assert_eq!((mail.text.as_deref(), mail.html.as_deref()), (Some("plain"), Some("<p>rich</p>")));
    assert_eq!(mail.header("x-long"), Some("one two"));
    let [pdf, png] = &mail.attachments[..] else { panic!("{:?}", mail.attachments) };
    assert_eq!((pdf.filename.as_deref(), pdf.content_type.as_str()), (Some("x.pdf"), "application/pdf"));
    assert_eq!((pdf.content.as_slice(), pdf.inline), (&b"%PDF"[..], false));
    assert_eq!((png.content_id.as_deref(), png.inline), (Some("logo@x"), true));
    Ok(())
}
