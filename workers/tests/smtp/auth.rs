//! Logging in.

use postrider_workers::{
    policy::outcome::{Class, Outcome, Stage},
    transport::smtp::{Auth, AuthMechanism, Relay, Settings},
};

use crate::{assert_accepted, assert_refused, deliver, of_session, server::Server, session};

/// Logs in to a relay that offers `offers` and follows `steps` (command, answer), then takes a message if `is_welcome`.
async fn log_in(mechanism: AuthMechanism, offers: &str, steps: &'static [(&str, &str)], is_welcome: bool) -> Outcome {
    let offers = format!("250-relay.example\r\n250-PIPELINING\r\n250 {offers}\r\n");
    let server = Server::start(move |mut conn| {
        let offers = offers.clone();
        async move {
            conn.welcome(&offers).await;
            for (command, answer) in steps {
                conn.expect(command).await;
                conn.say(answer).await;
            }
            if is_welcome {
                conn.take().await;
            }
            assert_eq!(conn.rest().await, "");
        }
    })
    .await;
    let auth = Auth { username: "app".into(), password: "s3cret".to_owned().into(), mechanism };
    let relay = Relay::new(of_session(Settings { auth: Some(auth), ..session(server.port) })).unwrap();
    let outcome = deliver(&relay).await;
    drop(relay);
    server.finish().await;
    outcome
}

#[tokio::test]
async fn plain_is_one_line() {
    let steps = &[("AUTH PLAIN AGFwcABzM2NyZXQ=\r\n", "235 2.7.0 Ok\r\n")];
    assert_accepted(&log_in(AuthMechanism::Auto, "AUTH LOGIN PLAIN", steps, true).await);
}

#[tokio::test]
async fn login_answers_two_challenges_whatever_they_say() {
    let steps = &[
        ("AUTH LOGIN\r\n", "334 VXNlcm5hbWU6\r\n"),
        ("YXBw\r\n", "334 who knows\r\n"),
        ("czNjcmV0\r\n", "235 2.7.0 Ok\r\n"),
    ];
    assert_accepted(&log_in(AuthMechanism::Auto, "AUTH LOGIN", steps, true).await);
}

#[tokio::test]
async fn a_refused_token_is_explained_in_a_challenge_and_named_after_it() {
    const LINE: &str = "AUTH XOAUTH2 dXNlcj1hcHABYXV0aD1CZWFyZXIgczNjcmV0AQE=\r\n";
    assert_accepted(&log_in(AuthMechanism::Xoauth2, "AUTH XOAUTH2", &[(LINE, "235 2.7.0 Ok\r\n")], true).await);
    let steps = &[(LINE, "334 eyJzdGF0dXMiOiI0MDEifQ==\r\n"), ("\r\n", "535 5.7.8 Bad token\r\n")];
    let outcome = log_in(AuthMechanism::Xoauth2, "AUTH XOAUTH2", steps, false).await;
    assert_eq!(assert_refused(&outcome, Class::Config, Stage::Auth).text, "the relay refused the login");
}

#[tokio::test]
async fn refused_credentials_need_a_person_and_name_no_secret() {
    let steps = &[("AUTH PLAIN AGFwcABzM2NyZXQ=\r\n", "535 5.7.8 Error: authentication failed\r\n")];
    let outcome = log_in(AuthMechanism::Plain, "AUTH PLAIN", steps, false).await;
    assert_refused(&outcome, Class::Config, Stage::Auth);
    assert!(!format!("{outcome:?}").contains("AGFwc"), "{outcome:?}");
    let steps = &[("AUTH LOGIN\r\n", "334 x\r\n"), ("YXBw\r\n", "535 5.7.8 no such user\r\n")];
    assert_refused(&log_in(AuthMechanism::Login, "AUTH LOGIN", steps, false).await, Class::Config, Stage::Auth);
}

#[tokio::test]
async fn a_login_that_fails_for_now_pauses_the_relay() {
    let steps = &[("AUTH PLAIN AGFwcABzM2NyZXQ=\r\n", "454 4.7.0 Temporary authentication failure\r\n")];
    assert_refused(&log_in(AuthMechanism::Auto, "AUTH PLAIN", steps, false).await, Class::Unavailable, Stage::Auth);
}

#[tokio::test]
async fn credentials_are_not_sent_where_nobody_offers_to_take_them() {
    let outcome = log_in(AuthMechanism::Auto, "SIZE", &[], false).await;
    assert_refused(&outcome, Class::Config, Stage::Auth);
    let outcome = log_in(AuthMechanism::Xoauth2, "AUTH PLAIN LOGIN", &[], false).await;
    assert!(assert_refused(&outcome, Class::Config, Stage::Auth).text.contains("XOAUTH2"));
}

#[tokio::test]
async fn of_an_answer_to_auth_only_the_codes_are_kept() {
    let steps =
        &[("AUTH PLAIN AGFwcABzM2NyZXQ=\r\n", "535 5.7.8 I do not know AUTH PLAIN AGFwcABzM2NyZXQ=, s3cret\r\n")];
    let outcome = log_in(AuthMechanism::Plain, "AUTH PLAIN", steps, false).await;
    let answer = assert_refused(&outcome, Class::Config, Stage::Auth);
    assert_eq!(answer.to_string(), "auth: 535 5.7.8 the relay refused the login");
    let steps = &[
        ("AUTH LOGIN\r\n", "334 x\r\n"),
        ("YXBw\r\n", "334 x\r\n"),
        ("czNjcmV0\r\n", "454 4.7.0 czNjcmV0? s3cret?\r\n"),
    ];
    let outcome = log_in(AuthMechanism::Login, "AUTH LOGIN", steps, false).await;
    let answer = assert_refused(&outcome, Class::Unavailable, Stage::Auth);
    assert_eq!(answer.to_string(), "auth: 454 4.7.0 the relay refused the login");
}
