//! Keys are seen by the provider and by nobody else.

use serde_json::json;

use crate::{
    KEY, SECOND_KEY, account, config, deliver, job, letter,
    server::{Server, answer},
    transport_of,
};
use postrider_workers::providers::{brevo, mailjet, postmark, resend, sendgrid};

const KINDS: [&str; 5] = ["sendgrid", "postmark", "resend", "brevo", "mailjet"];

#[track_caller]
fn assert_absent(text: &str) {
    // The second is the login of Mailjet as it goes over the wire.
    for secret in [KEY, SECOND_KEY, "a2V5LVpyOGtQcTQx", "ann@dest.example", "Hello Ann"] {
        assert!(!text.contains(secret), "{secret} stands in {text}");
    }
}

#[tokio::test]
async fn no_debug_text_shows_a_key_an_address_or_a_body() {
    for kind in KINDS {
        assert_absent(&format!("{:?}", account(kind)));
        let settings = config(kind, "http://127.0.0.1:9");
        assert_absent(&format!("{settings:?}"));
    }
    let (job, key, second) = (job(json!({})), KEY.into(), SECOND_KEY.into());
    let letter = letter(&job);
    let requests = [
        sendgrid::request(&key, &letter.view()),
        postmark::request(&key, None, &letter.view()),
        resend::request(&key, &letter.view()),
        brevo::request(&key, &letter.view()),
        mailjet::request(&key, &second, &letter.view()),
    ];
    for request in requests {
        assert_absent(&format!("{:?}", request.unwrap()));
    }
    assert_absent(&format!("{:?}", postmark::item(None, &letter.view()).unwrap()));
    assert_absent(&format!("{:?}", sendgrid::item(&letter.view()).unwrap()));
}

#[tokio::test]
async fn an_answer_that_repeats_our_key_does_not_pass_it_on() {
    for kind in KINDS {
        let server = Server::start(move |_, seen| {
            let said: Vec<String> = seen.headers.values().cloned().collect();
            let second = if kind == "mailjet" { SECOND_KEY } else { "" };
            answer(403, format!("not with {KEY} nor {second} nor {}", said.join(" ")))
        })
        .await;
        let transport = transport_of(config(kind, &format!("http://127.0.0.1:{}", server.port)));
        let outcome = deliver(&transport, &job(json!({}))).await;
        assert_eq!(server.seen().len(), 1);
        assert_absent(&format!("{outcome:?}"));
    }
}

#[tokio::test]
async fn a_key_that_no_header_can_hold_is_not_told() {
    let server = Server::start(|_, _| answer(200, "")).await;
    let mut settings = config("postmark", &format!("http://127.0.0.1:{}", server.port));
    settings.account = postrider_workers::config::Account::Postmark(postmark::Postmark {
        api_key: format!("{KEY}\n").into(),
        message_stream: None,
    });
    let outcome = deliver(&transport_of(settings), &job(json!({}))).await;
    assert_eq!(crate::refused(&outcome), postrider_workers::policy::outcome::Class::Config);
    assert_absent(&format!("{outcome:?}"));
    assert!(server.seen().is_empty());
}
