//! `postrider dev`: everything in one process, for trying a service against.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

use postrider_tests::{gateway, postrider::Postrider, story::SOON};

const JOB: &str = r#"{"from": "The Shop <orders@shop.example>", "to": ["ada@customer.example"], "subject": "Your receipt", "text": "Hi"}"#;

#[test]
fn it_prints_what_arrives_and_stops_cleanly_on_either_signal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.db");
    let dev = || {
        let arguments = ["dev".into(), "--file".into(), file.clone().into_os_string()];
        // To show the mail is its purpose; it goes nowhere.
        Postrider::command(arguments).may_print_addresses().start().unwrap()
    };
    let queue = format!("embedded:{}", file.display());
    for stop in [Postrider::interrupt, Postrider::terminate] {
        let mut dev = dev();
        dev.wait_for_output("up; publish with", SOON).unwrap();
        let sent = Postrider::command(["send", "--queue", &queue]).input(JOB).run(SOON).unwrap();
        assert!(sent.status.success(), "{}", sent.stderr);
        dev.wait_for_output("orders@shop.example -> ada@customer.example: Your receipt (", SOON).unwrap();
        stop(&mut dev).unwrap();
        assert!(dev.wait(SOON).unwrap().success(), "{}", dev.stderr());
        assert_eq!(
            dev.stdout().lines().count(),
            1,
            "what one run delivered, the next one leaves alone: {}",
            dev.stdout()
        );
        assert!(dev.stderr().contains("Stopped"), "{}", dev.stderr());
    }
}

#[test]
fn a_service_is_pointed_at_it_by_http_and_by_smtp_with_the_key_that_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["dev".into(), "--file".into(), folder.path().join("dev.db").into_os_string()];
    let start = || Postrider::command(arguments.clone()).may_print_addresses().start().unwrap();
    let mut dev = start();
    dev.wait_for_output("up; publish with", SOON).unwrap();
    let said = dev.stderr();
    let word = |start: &str| said.split_whitespace().find_map(|word| word.strip_prefix(start)).unwrap().to_owned();
    let port = |text: String| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u16>().unwrap();
    let key = format!("prk_{}", word("prk_"));
    let http = port(word("http://127.0.0.1:"));
    let bearer = format!("Bearer {key}");
    let answer = gateway::call(http, "POST", "/v1/jobs", &[("authorization", &bearer)], JOB).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    dev.wait_for_output("orders@shop.example -> ada@customer.example: Your receipt (", SOON).unwrap();
    let smtp = said.split("SMTP at 127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap();
    let sent = Command::new("swaks")
        .args([
            "--server",
            "127.0.0.1",
            "--port",
            smtp,
            "--auth",
            "PLAIN",
            "--auth-user",
            "any",
            "--auth-password",
            &key,
        ])
        .args(["--from", "orders@shop.example", "--to", "ada@customer.example", "--h-Subject", "By SMTP"])
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stdout));
    dev.wait_for_output("orders@shop.example -> ada@customer.example: By SMTP (", SOON).unwrap();
    dev.terminate().unwrap();
    assert!(dev.wait(SOON).unwrap().success(), "{}", dev.stderr());
    let mut again = start();
    again.wait_for_output(&key, SOON).unwrap();
    again.terminate().unwrap();
    again.wait(SOON).unwrap();
}

/// `dev` is the one command that prints addresses, so it can show that the harness looks: every other program that a story starts is held to
/// printing none.
#[test]
fn a_program_that_prints_an_address_fails_its_story() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.db");
    let queue = format!("embedded:{}", file.display());
    let arguments = ["dev".into(), "--file".into(), file.into_os_string()];
    let mut dev = Postrider::command(arguments).start().unwrap();
    dev.wait_for_output("up; publish with", SOON).unwrap();
    Postrider::command(["send", "--queue", &queue]).input(JOB).run(SOON).unwrap();
    dev.wait_for_output("ada@customer.example", SOON).unwrap();
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(dev)));
    let said = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("printed an address"), "{said}");
}
