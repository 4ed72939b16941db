//! Secrets and addresses stay out of everything that people and logs get to see.

use std::path::PathBuf;

use postrider_workers::{
    config::{Account, SesAccount, SesCredentials},
    providers::{mailgun, sparkpost, webhook},
};
use wiremock::ResponseTemplate;

use super::{SECRET, dated, delivered, example, letter};

fn accounts() -> [Account; 4] {
    let credentials = SesCredentials::Static {
        access_key_id: "AKIDEXAMPLE".to_owned(),
        secret_access_key: SECRET.into(),
        session_token: Some(SECRET.into()),
    };
    [
        Account::Ses(SesAccount {
            region: "eu-central-1".to_owned(),
            credentials,
            configuration_set: None,
            tracking_configuration_set: None,
        }),
        Account::Mailgun(mailgun::Mailgun { api_key: SECRET.into(), domain: "mg.shop.example".to_owned() }),
        Account::Sparkpost(sparkpost::Sparkpost { api_key: SECRET.into(), subaccount: None, idempotency: true }),
        Account::Webhook(webhook::Webhook { secret: SECRET.into() }),
    ]
}

#[track_caller]
fn assert_quiet(text: &str) {
    assert!(!text.contains(SECRET) && !text.contains("customer.example"), "{text}");
}

#[tokio::test]
async fn no_outcome_shows_a_secret_or_an_address() {
    for account in accounts() {
        assert_quiet(&format!("{account:?}"));
        for status in [200, 302, 400, 401, 403, 404, 420, 429, 500, 502] {
            let answer = ResponseTemplate::new(status).set_body_string("ada@customer.example is <unknown>");
            let (outcome, _) = delivered(account.clone(), &letter(&example("receipt"), None), answer).await;
            assert_quiet(&format!("{outcome:?}"));
        }
    }
}

#[tokio::test]
async fn no_request_shows_what_it_holds() {
    let job = example("receipt");
    let letter = letter(&job, None);
    let key = SECRET.into();
    for request in [
        mailgun::request(&key, "mg.shop.example", &letter.view()).unwrap(),
        sparkpost::request(&key, None, true, &letter.view()).unwrap(),
        webhook::request(&key, &letter.view(), dated()).unwrap(),
    ] {
        assert_quiet(&format!("{request:?}"));
    }
}

#[tokio::test]
async fn a_key_that_no_header_can_hold_is_a_clear_error_that_does_not_show_it() {
    let account = Account::Sparkpost(sparkpost::Sparkpost {
        api_key: format!("{SECRET}\n").into(),
        subaccount: None,
        idempotency: false,
    });
    let (outcome, requests) = delivered(account, &letter(&example("receipt"), None), ResponseTemplate::new(200)).await;
    let shown = format!("{outcome:?}");
    assert!(shown.contains("Config") && shown.contains("credentials"), "{shown}");
    assert_quiet(&shown);
    assert!(requests.is_empty());
}

#[tokio::test]
async fn a_token_file_that_is_missing_is_named_and_nothing_more() {
    let credentials = SesCredentials::WebIdentity {
        role_arn: "arn:aws:iam::1:role/mail".to_owned(),
        token_file: PathBuf::from("/nowhere/token"),
        sts_url: "http://127.0.0.1:9/".parse().unwrap(),
    };
    let account = Account::Ses(SesAccount {
        region: "eu-central-1".to_owned(),
        credentials,
        configuration_set: None,
        tracking_configuration_set: None,
    });
    let (outcome, requests) = delivered(account, &letter(&example("receipt"), None), ResponseTemplate::new(200)).await;
    let shown = format!("{outcome:?}");
    assert!(shown.contains("/nowhere/token"), "{shown}");
    assert_quiet(&shown);
    assert!(requests.is_empty());
}
