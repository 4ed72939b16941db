use super::*;
use crate::{
    config::load_text,
    policy::outcome::{Receipt, Refusal},
    store::StoreOptions,
};

const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.api]\nkind = \"postmark\"\napi_key = \"k\"\n\
                          [[route]]\nname = \"all\"\nsend = [\"api\"]\n";

#[tokio::test]
async fn an_answer_that_jobs_share_opens_the_circuit_once() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
    let transports = load_text(CONFIG).unwrap().transports;
    let breakers = CircuitBreakers::new(store.clone(), &transports, Duration::from_mins(1));
    let refused = || {
        let answer = Answer::new(Stage::Call, Some(401), None, "who are you");
        let refusal = Refusal { class: Class::Config, answer, retry_after: None };
        Outcome::Refused { refusal, recipients: Vec::new() }
    };
    let of_all = refused().of_all();
    assert!(breakers.heard(0, &of_all, None).await.is_some());
    store.circuit(&breakers.keys[0], &CircuitCall::Close).await.unwrap();
    // Somebody mended it before the others of that call had their turn.
    assert!(breakers.heard(0, &of_all.clone(), None).await.is_none());
    assert_eq!(store.circuits(&breakers.keys).await.unwrap(), [None]);
    assert!(breakers.heard(0, &refused().of_all(), None).await.is_some(), "another call says it anew");
}

#[test]
fn every_outcome_says_one_thing_of_the_transport() {
    let refused = |class, stage, code| {
        let refusal = Refusal { class, answer: Answer::new(stage, code, None, "no"), retry_after: None };
        Outcome::Refused { refusal, recipients: Vec::new() }
    };
    let receipt = Receipt { answer: Answer::new(Stage::Body, Some(250), None, "ok") };
    let cases = [
        (Outcome::Accepted { receipt, refused: Vec::new() }, Says::Works),
        (Outcome::Unknown(Answer::local(Stage::Body, "cut")), Says::NothingGood),
        (Outcome::LostClaim, Says::Nothing),
        (refused(Class::Config, Stage::Auth, Some(535)), Says::Broken),
        (refused(Class::Config, Stage::Tls, None), Says::Broken),
        (refused(Class::Transient, Stage::Connect, None), Says::NothingGood),
        (refused(Class::Transient, Stage::Connect, Some(421)), Says::NothingGood),
        (refused(Class::Transient, Stage::Auth, Some(454)), Says::NothingGood),
        (refused(Class::Transient, Stage::Call, Some(503)), Says::NothingGood),
        (refused(Class::Transient, Stage::RcptTo, Some(421)), Says::NothingGood),
        (refused(Class::Transient, Stage::RcptTo, Some(450)), Says::Works),
        (refused(Class::Throttled, Stage::MailFrom, Some(450)), Says::Works),
        (refused(Class::Throttled, Stage::Connect, None), Says::NothingGood),
        (refused(Class::Recipient, Stage::RcptTo, Some(550)), Says::Works),
        (refused(Class::Message, Stage::Compose, None), Says::Nothing),
        (refused(Class::Local, Stage::Connect, None), Says::Nothing),
    ];
    for (outcome, expected) in cases {
        assert_eq!(says(&outcome), expected, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_probe_ends_with_its_outcome_whatever_that_is() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
    let transports = load_text(CONFIG).unwrap().transports;
    let breakers = CircuitBreakers::new(store.clone(), &transports, Duration::from_millis(1));
    let refused = |class, code| {
        let refusal = Refusal { class, answer: Answer::new(Stage::Call, code, None, "no"), retry_after: None };
        Outcome::Refused { refusal, recipients: Vec::new() }
    };
    assert!(breakers.heard(0, &refused(Class::Config, Some(401)), None).await.is_some());
    let probe = async || loop {
        match breakers.ask(0).await {
            BreakerPermit::Probe(probe) => return probe,
            BreakerPermit::Open(..) => tokio::time::sleep(Duration::from_millis(1)).await,
            BreakerPermit::Go => panic!("closed"),
        }
    };
    let record = async || store.circuits(&breakers.keys).await.unwrap().remove(0).unwrap();
    for n in 2..5 {
        let probe = probe().await;
        assert!(record().await.probe_ms > 0);
        assert!(breakers.heard(0, &refused(Class::Transient, None), Some(probe)).await.is_none());
        let now = record().await;
        assert_eq!((now.failures, now.probe_ms), (n, 0));
    }
    // One that is not made gives its lease back.
    drop(probe().await);
    let released = async || {
        while record().await.probe_ms > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), released()).await.unwrap();
    assert_eq!(record().await.failures, 4);
}
