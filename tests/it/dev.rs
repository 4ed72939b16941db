//! `postrider dev`: everything in one process, for trying a service against.

use std::panic::{AssertUnwindSafe, catch_unwind};

use postrider_tests::postrider::Postrider;
use postrider_tests::story::SOON;

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
