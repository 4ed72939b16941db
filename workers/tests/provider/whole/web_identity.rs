//! Keys for Amazon SES from STS: asked for once by many, kept, and fetched anew when they end.

use std::path::Path;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use postrider_workers::{
    config::{Account, SesAccount, SesCredentials},
    policy::outcome::{Class, Outcome},
    transport::provider::Provider,
};
use serde_json::json;
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{method, path},
};

use super::{example, header, letter, provider};

/// STS and SES on one server. The keys live for so long.
async fn server(keys_live: SignedDuration) -> MockServer {
    let server = MockServer::start().await;
    let sts = move |request: &Request| {
        let body = String::from_utf8(request.body.clone()).unwrap();
        let token = body.rsplit_once("WebIdentityToken=").unwrap().1.to_owned();
        let until = Timestamp::now() + keys_live;
        ResponseTemplate::new(200).set_body_string(format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIA{token}</AccessKeyId>\
             <SecretAccessKey>secret</SecretAccessKey><SessionToken>session-{token}</SessionToken><Expiration>{until}</Expiration>\
             </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        ))
    };
    Mock::given(method("POST")).and(path("/")).respond_with(sts).mount(&server).await;
    let taken = ResponseTemplate::new(200).set_body_json(json!({ "MessageId": "1" }));
    Mock::given(path("/v2/email/outbound-emails")).respond_with(taken).mount(&server).await;
    server
}

fn account(server: &MockServer, token_file: &Path) -> Provider {
    let credentials = SesCredentials::WebIdentity {
        role_arn: "arn:aws:iam::123456789012:role/mail".to_owned(),
        token_file: token_file.to_owned(),
        sts_url: server.uri().parse().unwrap(),
    };
    let account = SesAccount {
        region: "eu-central-1".to_owned(),
        credentials,
        configuration_set: None,
        tracking_configuration_set: None,
    };
    provider(Account::Ses(account), &server.uri())
}

async fn seen(server: &MockServer, at: &str) -> Vec<Request> {
    server.received_requests().await.unwrap().into_iter().filter(|request| request.url.path() == at).collect()
}

#[tokio::test]
async fn many_deliveries_ask_for_keys_once() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let server = server(SignedDuration::from_hours(1)).await;
    let provider = account(&server, &token);
    let job = example("receipt");
    let all_outgoing: Vec<_> = (0..20).map(|_| letter(&job, None)).collect();
    let outcomes = join_all(all_outgoing.iter().map(|letter| provider.deliver(letter, async { true }))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })), "{outcomes:?}");
    let asked = seen(&server, "/").await;
    assert_eq!(asked.len(), 1);
    let body = String::from_utf8(asked[0].body.clone()).unwrap();
    assert_eq!(
        body,
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fmail\
         &RoleSessionName=postrider&WebIdentityToken=first"
    );
    assert!(header(&asked[0], "content-type").starts_with("application/x-www-form-urlencoded"));
    for request in seen(&server, "/v2/email/outbound-emails").await {
        assert_eq!(header(&request, "x-amz-security-token"), "session-first");
        assert!(header(&request, "authorization").contains("Credential=ASIAfirst/"));
    }
}

#[tokio::test]
async fn keys_that_are_about_to_end_are_fetched_anew_with_the_token_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    // Shorter than the time by which keys are replaced early: each delivery asks.
    let server = server(SignedDuration::from_secs(60)).await;
    let provider = account(&server, &token);
    let job = example("receipt");
    for word in ["first", "second"] {
        std::fs::write(&token, word).unwrap();
        provider.deliver(&letter(&job, None), async { true }).await;
    }
    let used: Vec<_> = seen(&server, "/v2/email/outbound-emails")
        .await
        .iter()
        .map(|request| header(request, "x-amz-security-token").to_owned())
        .collect();
    assert_eq!(used, ["session-first", "session-second"]);
}

#[tokio::test]
async fn keys_that_are_refused_as_ended_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let server = server(SignedDuration::from_hours(1)).await;
    let ended = ResponseTemplate::new(403).insert_header("x-amzn-errortype", "ExpiredTokenException");
    Mock::given(path("/v2/email/outbound-emails"))
        .respond_with(ended)
        .up_to_n_times(1)
        .with_priority(1)
        .mount(&server)
        .await;
    let provider = account(&server, &token);
    let job = example("receipt");
    let first = provider.deliver(&letter(&job, None), async { true }).await;
    let Outcome::Refused { refusal, .. } = first else { panic!("{first:?}") };
    assert_eq!(refusal.class, Class::Transient);
    let second = provider.deliver(&letter(&job, None), async { true }).await;
    assert!(matches!(second, Outcome::Accepted { .. }), "{second:?}");
    assert_eq!(seen(&server, "/").await.len(), 2);
}

#[tokio::test]
async fn many_deliveries_share_a_failure_and_the_next_one_asks_again() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let server = server(SignedDuration::from_hours(1)).await;
    let busy = ResponseTemplate::new(503);
    Mock::given(path("/")).respond_with(busy).up_to_n_times(1).with_priority(1).mount(&server).await;
    let provider = account(&server, &token);
    let job = example("receipt");
    let all_outgoing: Vec<_> = (0..20).map(|_| letter(&job, None)).collect();
    let outcomes = join_all(all_outgoing.iter().map(|letter| provider.deliver(letter, async { true }))).await;
    for outcome in outcomes {
        let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((refusal.class, refusal.answer.text.as_str()), (Class::Transient, "STS: 503"));
    }
    assert_eq!(seen(&server, "/").await.len(), 1);
    let outcome = provider.deliver(&letter(&job, None), async { true }).await;
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
}

#[tokio::test]
async fn keys_that_are_still_good_serve_while_sts_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first").unwrap();
    // Shorter than the time by which keys are replaced early: each delivery asks.
    let server = server(SignedDuration::from_secs(200)).await;
    let provider = account(&server, &token);
    let job = example("receipt");
    provider.deliver(&letter(&job, None), async { true }).await;
    std::fs::remove_file(&token).unwrap();
    let outcome = provider.deliver(&letter(&job, None), async { true }).await;
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_a_person_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(SignedDuration::from_hours(1)).await;
    let provider = account(&server, &folder.path().join("missing"));
    let job = example("receipt");
    let outcome = provider.deliver(&letter(&job, None), async { panic!("nothing may be submitted") }).await;
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.class, Class::Config);
    assert!(refusal.answer.text.contains("token file"), "{}", refusal.answer.text);
    assert_eq!(server.received_requests().await.unwrap().len(), 0);
}
