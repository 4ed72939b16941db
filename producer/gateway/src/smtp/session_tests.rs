use proptest::prelude::*;

use super::*;
use crate::smtp::command;

const POLICY: Policy = Policy { has_tls: true, plaintext_auth: false, size: 1000, recipients: 2 };

fn act(session: &mut Session, line: &str) -> Action {
    match command::parse(line.as_bytes()) {
        Ok(command) => session.command(command),
        Err(refusal) => session.refuse(refusal),
    }
}

fn codes(session: &mut Session, lines: &[&str]) -> Vec<String> {
    let code = |line: &&str| match act(session, line) {
        Action::Say(text) | Action::End(text) | Action::StartTls(text) | Action::ReadData(text) => text[..3].to_owned(),
        Action::Auth(..) => "auth".to_owned(),
        Action::ReadChunk { is_wanted, .. } => if is_wanted { "chunk" } else { "junk" }.to_owned(),
    };
    lines.iter().map(code).collect()
}

fn authenticated() -> Session {
    let mut session = Session::new(POLICY, true);
    session.authenticated();
    act(&mut session, "EHLO x");
    session
}

#[test]
fn nothing_goes_without_tls_and_a_key() {
    let mut session = Session::new(POLICY, false);
    let lines =
        ["MAIL FROM:<a@b.example>", "EHLO x", "MAIL FROM:<a@b.example>", "BDAT 5 LAST", "AUTH PLAIN", "STARTTLS"];
    assert_eq!(codes(&mut session, &lines), ["503", "250", "530", "junk", "538", "220"]);
    session.encrypted();
    let lines = ["AUTH PLAIN", "EHLO x", "STARTTLS", "AUTH CRAM-MD5", "AUTH LOGIN"];
    assert_eq!(codes(&mut session, &lines), ["503", "250", "502", "504", "auth"]);
    session.authenticated();
    assert_eq!(codes(&mut session, &["AUTH LOGIN", "MAIL FROM:<>"]), ["503", "250"]);
}

#[test]
fn a_message_has_a_sender_then_recipients() {
    let mut session = authenticated();
    let lines = [
        ("RCPT TO:<c@d.example>", "503"),
        ("DATA", "503"),
        ("MAIL FROM:<nobody>", "553"),
        ("MAIL FROM:<>", "250"),
        ("DATA", "503"),
        ("MAIL FROM:<>", "503"),
        ("RCPT TO:<nobody>", "553"),
        ("RCPT TO:<c@d.example>", "250"),
        ("RCPT TO:<d@d.example>", "250"),
        ("RCPT TO:<e@d.example>", "452"),
        ("DATA", "354"),
    ];
    for (line, code) in lines {
        assert_eq!(codes(&mut session, &[line]), [code], "{line}");
    }
    let envelope = session.take_envelope();
    assert_eq!((envelope.from.as_str(), envelope.to.join(" ").as_str()), ("", "c@d.example d@d.example"));
    assert_eq!(codes(&mut session, &["DATA", "MAIL FROM:<a@b.example> SIZE=1001"]), ["503", "552"]);
}

#[test]
fn a_message_in_chunks_is_not_mixed_with_another_one() {
    let mut session = authenticated();
    let lines = [
        ("BDAT 5", "junk"),
        ("MAIL FROM:<>", "250"),
        ("BDAT 5", "junk"),
        ("RCPT TO:<c@d.example>", "250"),
        ("BDAT 1001", "552"),
        ("BDAT 5", "chunk"),
        ("DATA", "503"),
        ("RCPT TO:<d@d.example>", "503"),
        ("BDAT 0 LAST", "chunk"),
        ("RSET", "250"),
        ("BDAT 5 LAST", "junk"),
    ];
    for (line, code) in lines {
        assert_eq!(codes(&mut session, &[line]), [code], "{line}");
    }
}

#[test]
fn offers_follow_from_encryption_and_errors_end() {
    let mut session = Session::new(POLICY, false);
    let Action::Say(clear) = session.command(Command::Ehlo) else { panic!("no offers") };
    assert!(clear.contains("STARTTLS") && !clear.contains("AUTH") && clear.contains("250-SIZE 1000\r\n"), "{clear}");
    session.encrypted();
    let Action::Say(offers) = session.command(Command::Ehlo) else { panic!("no offers") };
    assert!(!offers.contains("STARTTLS") && offers.ends_with("250 AUTH PLAIN LOGIN"), "{offers}");
    let says = |action| matches!(action, Action::Say(_));
    assert!(says(session.wrong_key("x")) && says(session.wrong_key("x")) && !says(session.wrong_key("x")));
    assert_eq!(codes(&mut session, &["x"; 21]).last().map(String::as_str), Some("421"));
}

proptest! {
    /// Whatever is said in whatever order, a message is read only behind TLS, a key, a sender and a recipient.
    #[test]
    fn no_order_of_commands_opens_a_way_around_the_key(
        said in prop::collection::vec((0_usize..11, any::<bool>()), 0..30)
    ) {
        const LINES: [&str; 11] = ["EHLO x", "HELO x", "STARTTLS", "AUTH PLAIN", "MAIL FROM:<a@b.example>",
            "RCPT TO:<c@d.example>", "DATA", "BDAT 3", "BDAT 3 LAST", "RSET", "NOOP"];
        let (mut session, mut is_encrypted, mut has_key, mut recipients) = (Session::new(POLICY, false), false, false, 0);
        for (n, is_right) in said {
            match act(&mut session, LINES[n]) {
                Action::StartTls(_) => {
                    session.encrypted();
                    (is_encrypted, has_key, recipients) = (true, false, 0);
                }
                Action::Auth(..) => {
                    prop_assert!(is_encrypted);
                    has_key = is_right;
                    if is_right { session.authenticated() } else { session.wrong_key("no") };
                }
                Action::Say(text) if text.starts_with("250 2.1.5") => {
                    prop_assert!(is_encrypted && has_key);
                    recipients += 1;
                }
                Action::ReadData(_) | Action::ReadChunk { is_wanted: true, is_last: true, .. } => {
                    prop_assert!(is_encrypted && has_key && recipients > 0);
                    prop_assert!(!session.take_envelope().to.is_empty());
                    recipients = 0;
                }
                Action::End(_) => return Ok(()),
                _ if matches!(LINES[n], "EHLO x" | "HELO x" | "RSET") => recipients = 0,
                _ => {}
            }
        }
    }
}
