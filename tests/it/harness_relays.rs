//! The relays of the harness do what they say, as a client sees it that nobody here wrote (swaks).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_tests::{
    aiosmtpd::{Aiosmtpd, Tls},
    deadline::wait_for,
    mail::Mail,
    postfix::{self, Postfix},
    process,
    sink::{Options, SinkFault, SmtpSink, StoredMessage},
    test_env::{EnvSpec, TestEnv, assert_nothing_left},
};

const SOON: Duration = Duration::from_secs(20);

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
fn a_sink_that_stores_nothing_counts_every_message() -> Result<()> {
    let sink = SmtpSink::start(Options { store: false, ..Options::default() })?;
    assert_eq!(sink.count()?, 0);
    let server = format!("127.0.0.1:{}", sink.port());
    process::run(
        "smtp-source",
        ["-s", "3", "-m", "120", "-f", "a@from.test", "-t", "b@dest.test", &server],
        &[],
        SOON,
    )?;
    wait_for("the count", SOON, || (sink.count().ok()? == 120).then_some(()))?;
    assert_eq!(sink.messages()?, []);
    Ok(())
}

#[test]
fn each_fault_of_the_sink_does_what_it_says() -> Result<()> {
    for (fault, said, stored) in [
        (SinkFault::DropAfter("."), "Remote host closed connection unexpectedly", 1),
        (SinkFault::Soft("."), "<** 450 4.3.0", 1),
        (SinkFault::Hard("."), "<** 500 5.3.0", 1),
        (SinkFault::Hard("RCPT"), "<** 500 5.3.0", 0),
        (SinkFault::SoftReply("MAIL", "421 4.7.0 slow down"), "<** 421 4.7.0 slow down", 0),
        (SinkFault::HardReply("RCPT", "550 5.1.1 nobody"), "<** 550 5.1.1 nobody", 0),
        (SinkFault::Closing("RCPT"), "<** 421", 0),
        (SinkFault::DropAfter("RCPT"), "Remote host closed connection unexpectedly", 0),
        (SinkFault::LateData(1), "<-  250", 1),
        (SinkFault::Late("MAIL", 1), "<-  250", 1),
        (SinkFault::NoEsmtp, "HELO", 1),
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
    let env = TestEnv::start(&EnvSpec { sink: Some(Options::default()), postfix: true, ..EnvSpec::default() })?;
    let postfix = env.postfix();
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
    let messages = env.sink().wait_for(3, SOON)?;
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
    let env = TestEnv::start(&EnvSpec { sink: Some(Options::default()), postfix: true, ..EnvSpec::default() })?;
    let options = postfix::Options { greylisting: true, ..postfix::Options::to(env.sink().port()) };
    let mut second = Postfix::start_with(&options)?;
    let server = format!("localhost:{}", second.greylisted);
    let auth = ["-tls", "--auth", "PLAIN", "--auth-user", postfix::USER, "--auth-password", postfix::PASSWORD];
    let args = [&auth[..], &["--server", &server, "--to", "b@dest.test"]].concat();
    assert!(format!("{:#}", swaks(&args).err().context("not greylisted")?).contains("450 4.2.0"));
    wait_for("the end of greylisting", SOON, || swaks(&args).ok())?;
    env.sink().wait_for(1, SOON)?;
    second.stop()?;
    assert!(swaks(&args).is_err());
    second.restart()?;
    swaks(&args)?;
    env.sink().wait_for(2, SOON)?;
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
