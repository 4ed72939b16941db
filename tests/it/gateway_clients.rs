//! The vendors' own clients, pointed at a gateway: every mail arrives once, and errors are what the clients expect.

use postrider_tests::{
    gateway::{self, Gateway},
    mail::Mail,
    postrider::Postrider,
    process, python, say_skipped,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
};

#[test]
fn the_vendors_own_clients_send_through_a_gateway() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/components/vendor_clients.py");
    let python = match python::with(&["resend", "sendgrid", "postmarker"]) {
        Ok(python) => python,
        Err(error) => return say_skipped("the vendors' own clients", &format!("{error:#}")),
    };
    let sink = SmtpSink::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let key = gateway::new_key(folder.path(), &["--sender-domain", "shop.example"]).unwrap();
    let gateway = Gateway::start(&file, &file, folder.path(), &key, "").unwrap();
    let worker = Postrider::worker(story::config(&file, &file, sink.port(), ROUTE)).unwrap();
    let url = format!("http://127.0.0.1:{}", gateway.port());
    let said = process::run(&python.display().to_string(), [script, &url, &key], &[], SOON * 2).unwrap();
    assert_eq!(said.lines().count(), 3, "{said}");
    let last = r#"{"from": "orders@shop.example", "to": "last@customer.example", "subject": "last", "text": "x"}"#;
    assert_eq!(gateway.send("last", last).unwrap().status, 202);
    let mut expected = vec![
        "last",
        "postmark batch",
        "postmark one",
        "resend batch 1",
        "resend batch 2",
        "resend one",
        "sendgrid one",
        "sendgrid part 1",
        "sendgrid part 2",
    ];
    let stored = sink.wait_for(expected.len(), SOON).unwrap();
    let mails: Vec<Mail> = stored.iter().map(|one| Mail::parse(&one.raw).unwrap()).collect();
    let mut subjects: Vec<&str> = mails.iter().filter_map(|mail| mail.subject.as_deref()).collect();
    subjects.sort_unstable();
    expected.sort_unstable();
    assert_eq!(subjects, expected);
    for vendor in ["resend", "sendgrid", "postmark"] {
        let subject = format!("{vendor} one");
        let at = mails.iter().position(|mail| mail.subject.as_deref() == Some(&subject)).unwrap();
        let (mail, stored) = (&mails[at], &stored[at]);
        assert_eq!(mail.text.as_deref().map(str::trim_end), Some("Zoë"), "{vendor}");
        assert_eq!(mail.html.as_deref().map(str::trim_end), Some("<p>Zoë</p>"), "{vendor}");
        assert_eq!(mail.reply_to[0].address, "help@shop.example", "{vendor}");
        assert_eq!(mail.from[0].name.as_deref(), Some("The Shop"), "{vendor}");
        assert_eq!(mail.header("X-Order").map(str::trim), Some("1"), "{vendor}");
        if vendor != "postmark" {
            assert_eq!(mail.attachments[0].content, b"attached", "{vendor}");
        }
        let expected = if vendor == "resend" { 3 } else { 1 };
        assert_eq!(stored.recipients().len(), expected, "{vendor}");
    }
    drop(worker);
}
