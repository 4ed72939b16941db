//! SMTP submission with clients in use (Python's smtplib, swaks), over TLS: the envelope decides, repeats are one mail, control headers do not leave.

use std::process::Command;

use postrider_tests::{
    gateway::{self, Gateway},
    mail::Mail,
    ports,
    postrider::Postrider,
    process, python, say_skipped,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    tls::Authority,
};

#[test]
fn messages_over_smtp_are_jobs() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/components/smtp_client.py");
    let python = match python::with(&["smtplib"]) {
        Ok(python) => python,
        Err(error) => return say_skipped("SMTP clients", &format!("{error:#}")),
    };
    let (sink, folder) = (SmtpSink::start(Options::default()).unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path()).unwrap();
    let identity = authority.issue("gateway", &["localhost"]).unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let key = gateway::new_key(folder.path(), &["--sender-domain", "shop.example"]).unwrap();
    let (port, tls_port) = (ports::free().unwrap(), ports::free().unwrap());
    let more = format!(
        "[gateway.smtp]\nlisten = \"127.0.0.1:{port}\"\nlisten_tls = \"127.0.0.1:{tls_port}\"\ncertificate = \"{}\"\n\
         private_key = \"{}\"\nderive_key = true\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let gateway = Gateway::start(&file, &file, folder.path(), &key, &more).unwrap();
    let _worker = Postrider::worker(story::config(&file, &file, sink.port(), ROUTE)).unwrap();
    let authority_file = authority.ca_file().display().to_string();
    let arguments = [script, &port.to_string(), &tls_port.to_string(), &key, &authority_file];
    process::run(&python.display().to_string(), arguments, &[], SOON * 2).unwrap();
    swaks(port, &key, &authority_file);
    let last = r#"{"from": "orders@shop.example", "to": "last@customer.example", "subject": "last", "text": "x"}"#;
    assert_eq!(gateway.send("last", last).unwrap().status, 202);
    let expected = ["last", "smtp chunks", "smtp derived", "smtp keyed", "smtp one", "smtp swaks"];
    let mut subjects = Vec::new();
    for one in &sink.wait_for(expected.len(), SOON).unwrap() {
        let mail = Mail::parse(&one.raw).unwrap();
        let subject = mail.subject.clone().unwrap();
        if subject.starts_with("smtp") {
            assert_eq!(one.recipients(), ["hidden@customer.example"], "{subject}");
            assert_eq!(one.sender(), "bounces@shop.example", "{subject}");
            assert_eq!(mail.to[0].address, "ada@customer.example", "{subject}");
            assert!(mail.message_id.is_some() && mail.header("Date").is_some(), "{subject}");
            let is_control = |name: &str| name.contains("postrider") || name.contains("idempotency");
            assert!(!mail.headers.iter().any(|(name, _)| is_control(&name.to_lowercase())), "{subject}");
        }
        if matches!(subject.as_str(), "smtp one" | "smtp chunks") {
            assert_eq!(mail.text.as_deref().map(str::trim_end), Some("Zoë\n.\n..dots"), "{subject}");
            assert_eq!(mail.attachments[0].content, b"attached", "{subject}");
        }
        subjects.push(subject);
    }
    subjects.sort_unstable();
    assert_eq!(subjects, expected);
    let page = gateway.metrics().unwrap();
    assert!(page.contains("postrider_gateway_jobs_total{api=\"smtp\",result=\"queued\"}"), "{page}");
}

/// The tool that people try an SMTP server with.
fn swaks(port: u16, key: &str, authority: &str) {
    let done = Command::new("swaks")
        .args([
            "--server",
            "localhost",
            "--port",
            &port.to_string(),
            "--tls",
            "--tls-ca-path",
            authority,
            "--tls-verify",
        ])
        .args(["--auth", "LOGIN", "--auth-user", "anybody", "--auth-password", key])
        .args(["--from", "bounces@shop.example", "--to", "hidden@customer.example"])
        .args(["--h-From", "orders@shop.example", "--h-To", "ada@customer.example", "--h-Subject", "smtp swaks"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("250 2.0.0 Queued as "), "{said}");
}
