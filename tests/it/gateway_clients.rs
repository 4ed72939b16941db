//! The vendors' own clients, pointed at a gateway: every mail arrives once and whole, and refusals are what the clients expect.

use std::path::Path;

use postrider_tests::{
    gateway::{self, Gateway},
    mail::Mail,
    node,
    postrider::Postrider,
    process, python, say_skipped,
    sink::{Options, SmtpSink, StoredMessage},
    story::{self, ROUTE, SOON},
};

const SIGNING: &str = "signing_secret = \"a secret of the tests alone\"";

/// A mail that says all that its client can say, and what of it that is.
struct Full {
    subject: &'static str,
    recipients: usize,
    has_header: bool,
    has_file: bool,
}

const fn full(subject: &'static str, recipients: usize, has_header: bool, has_file: bool) -> Full {
    Full { subject, recipients, has_header, has_file }
}

const PYTHON: [Full; 9] = [
    full("resend one", 3, true, true),
    full("sendgrid one", 1, true, true),
    full("postmark one", 1, true, false),
    full("sesv2 one", 1, true, true),
    full("ses one", 2, false, false),
    full("anymail resend", 2, true, true),
    full("anymail postmark", 2, true, true),
    full("anymail mailgun", 2, true, true),
    full("anymail amazon_ses", 2, true, true),
];

const NODE: [Full; 7] = [
    full("node resend one", 3, true, true),
    full("node sendgrid one", 3, true, true),
    full("node postmark one", 3, true, true),
    full("node mailgun one", 3, true, true),
    full("node sesv2 one", 3, true, true),
    full("node ses one", 3, false, false),
    full("node nodemailer one", 3, true, true),
];

/// Runs the clients of one language and compares what arrives: the full mails, and the others by their subjects, each of them once.
fn story(program: &Path, script: &str, env: &[(String, String)], full: &[Full], others: &[&str]) {
    let script = format!("{}/components/{script}", env!("CARGO_MANIFEST_DIR"));
    let sink = SmtpSink::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let key = gateway::new_key(folder.path(), &["--sender-domain", "shop.example"]).unwrap();
    let gateway = Gateway::start(&file, &file, folder.path(), &key, SIGNING).unwrap();
    let [aws_id, aws_secret] = gateway::aws_keys(folder.path(), &key, SIGNING).unwrap();
    let _worker = Postrider::worker(story::config(&file, &file, sink.port(), ROUTE)).unwrap();
    let url = format!("http://127.0.0.1:{}", gateway.port());
    let arguments = [script, url, key, aws_id, aws_secret];
    process::run(&program.display().to_string(), arguments, env, SOON * 4).unwrap();
    // A last job shows that all others are through.
    let last = r#"{"from": "orders@shop.example", "to": "last@customer.example", "subject": "last", "text": "x"}"#;
    assert_eq!(gateway.send("last", last).unwrap().status, 202);
    let mut expected: Vec<&str> = full.iter().map(|one| one.subject).chain(others.iter().copied()).collect();
    expected.push("last");
    expected.sort_unstable();
    let stored = sink.wait_for(expected.len(), SOON * 2).unwrap();
    let mails: Vec<Mail> = stored.iter().map(|one| Mail::parse(&one.raw).unwrap()).collect();
    let mut subjects: Vec<&str> = mails.iter().filter_map(|mail| mail.subject.as_deref()).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, expected);
    for one in full {
        let at = mails.iter().position(|mail| mail.subject.as_deref() == Some(one.subject)).unwrap();
        compare(one, &mails[at], &stored[at]);
    }
}

fn compare(expected: &Full, mail: &Mail, stored: &StoredMessage) {
    let what = expected.subject;
    assert_eq!(mail.text.as_deref().map(str::trim_end), Some("Zoë"), "{what}");
    assert_eq!(mail.html.as_deref().map(str::trim_end), Some("<p>Zoë</p>"), "{what}");
    assert_eq!(mail.reply_to[0].address, "help@shop.example", "{what}");
    assert_eq!(mail.from[0].name.as_deref(), Some("The Shop"), "{what}");
    assert_eq!(mail.from[0].address, "orders@shop.example", "{what}");
    assert_eq!(mail.to[0].address, "ada@customer.example", "{what}");
    assert!(mail.bcc.is_empty(), "{what}");
    assert_eq!(stored.recipients().len(), expected.recipients, "{what}");
    if expected.has_header {
        assert_eq!(mail.header("X-Order").map(str::trim), Some("1"), "{what}");
    }
    if expected.has_file {
        let file = &mail.attachments[0];
        assert_eq!((file.filename.as_deref(), file.content.as_slice()), (Some("a.txt"), &b"attached"[..]), "{what}");
        assert!(file.content_type.starts_with("text/plain"), "{what}");
    }
}

#[test]
fn the_vendors_own_clients_for_python_send_through_a_gateway() {
    let python = match python::with(&["resend", "sendgrid", "postmarker", "boto3", "anymail"]) {
        Ok(python) => python,
        Err(error) => return say_skipped("the vendors' own clients for Python", &format!("{error:#}")),
    };
    let others = [
        "postmark batch",
        "resend batch 1",
        "resend batch 2",
        "sendgrid part 1",
        "sendgrid part 2",
        "ses lost",
        "ses raw",
        "sesv2 for Ada",
        "sesv2 lost",
        "sesv2 raw",
    ];
    story(&python, "vendor_clients.py", &[], &PYTHON, &others);
}

#[test]
fn the_vendors_own_clients_for_node_send_through_a_gateway() {
    let (program, env) = match node::with_clients() {
        Ok(found) => found,
        Err(error) => return say_skipped("the vendors' own clients for Node", &format!("{error:#}")),
    };
    let others = [
        "node mailgun for D",
        "node mailgun for E",
        "node mailgun lost",
        "node mailgun mime",
        "node postmark batch",
        "node resend batch",
        "node resend lost",
        "node sendgrid lost",
        "node ses lost",
        "node ses raw",
        "node sesv2 for D",
        "node sesv2 for E",
        "node sesv2 lost",
        "node sesv2 raw",
    ];
    story(&program, "vendor_clients.cjs", &env, &NODE, &others);
}
