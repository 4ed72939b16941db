//! Amazon SES takes what we send, and only with the right signature: moto is the judge.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, examples, wire};
use postrider_tests::moto::{DOMAIN, Moto, REGION, http};
use postrider_workers::{
    config::{Account, ProviderConfig, SesAccount, SesCredentials},
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    providers::{ses, sigv4::Keys},
    transport::provider::{
        Provider,
        client::{Client, host},
    },
};

fn account(keys: &Keys) -> SesAccount {
    SesAccount {
        region: REGION.to_owned(),
        credentials: SesCredentials::Static {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: keys.secret_access_key.clone(),
            session_token: None,
        },
        configuration_set: Some("all".to_owned()),
        tracking_configuration_set: Some("tracked".to_owned()),
    }
}

fn provider(moto: &Moto, keys: &Keys) -> Result<Provider> {
    Ok(Provider::new(&ProviderConfig {
        account: Account::Ses(account(keys)),
        base_url: moto.url().parse()?,
        http: http(),
        tracking: false,
        batch: false,
        batch_linger: Duration::ZERO,
        rate_headers: true,
        answers: postrider_workers::config::shipped_answers(),
    })?)
}

/// An example with a sender of this domain.
fn example(document: &str, domain: &str) -> Result<Job> {
    let mut document: serde_json::Value = serde_json::from_str(document)?;
    match &mut document["from"] {
        serde_json::Value::Object(from) => from["address"] = format!("from@{domain}").into(),
        from => *from = format!("The Shop <from@{domain}>").into(),
    }
    Ok(wire::decode(document.to_string().as_bytes(), None, &JobLimits::DEFAULT)?)
}

fn receipt() -> Result<Job> {
    let (_, document) = examples::ALL.iter().find(|(name, _)| *name == "receipt").unwrap();
    example(document, DOMAIN)
}

#[tokio::test]
async fn amazon_takes_every_example_with_our_signature() -> Result<()> {
    let moto = Moto::start().await?;
    let provider = provider(&moto, moto.keys())?;
    let mut ids = Vec::new();
    for (name, document) in examples::ALL {
        let job = example(document, DOMAIN)?;
        let letter = OutgoingMessage::new(&job, None, None, Timestamp::now())?;
        let outcome = provider.deliver(&letter, async { true }).await;
        let Outcome::Accepted { receipt, .. } = outcome else { bail!("{name}: {outcome:?}") };
        ids.push(receipt.answer.text);
        let sent = moto.sent()?;
        let sent = sent.last().unwrap();
        ensure!(Some(&sent.id) == ids.last(), "{name}: {} is not {:?}", sent.id, ids.last());
        ensure!(sent.mime.as_bytes() == letter.mime()?.message, "{name}: another message arrived");
        let asked: Vec<String> = letter.recipients().iter().map(|address| (*address).to_string()).collect();
        ensure!(sent.recipients.starts_with(&asked), "{name}: {} recipients", sent.recipients.len());
    }
    ensure!(moto.sent()?.len() == examples::ALL.len());
    Ok(())
}

#[tokio::test]
async fn amazon_refuses_wrong_keys_and_a_sender_that_may_not_send() -> Result<()> {
    let moto = Moto::start().await?;
    let wrong_secret = Keys { secret_access_key: "wrong".into(), ..moto.keys().clone() };
    let unknown = Keys { access_key_id: "AKIAUNKNOWN".to_owned(), ..moto.keys().clone() };
    let job = receipt()?;
    for keys in [wrong_secret, unknown] {
        let letter = OutgoingMessage::new(&job, None, None, Timestamp::now())?;
        let outcome = provider(&moto, &keys)?.deliver(&letter, async { true }).await;
        let Outcome::Refused { refusal, .. } = outcome else { bail!("{outcome:?}") };
        ensure!((refusal.class, refusal.answer.code) == (Class::Config, Some(403)), "{refusal:?}");
    }
    let (_, document) = examples::ALL.iter().find(|(name, _)| *name == "receipt").unwrap();
    let job = example(document, "other.example")?;
    let letter = OutgoingMessage::new(&job, None, None, Timestamp::now())?;
    let outcome = provider(&moto, moto.keys())?.deliver(&letter, async { true }).await;
    let Outcome::Refused { refusal, .. } = outcome else { bail!("{outcome:?}") };
    ensure!(refusal.answer.text.contains("MessageRejected"), "{refusal:?}");
    ensure!(moto.sent()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn amazon_refuses_a_body_that_was_changed_after_it_was_signed() -> Result<()> {
    let moto = Moto::start().await?;
    let url = moto.url().parse()?;
    let job = receipt()?;
    let letter = OutgoingMessage::new(&job, None, None, Timestamp::now())?;
    let client = Client::new(&http(), &url)?;
    let signed = || ses::request(&account(moto.keys()), moto.keys(), &host(&url), &letter.view(), Timestamp::now());
    let mut tampered = signed()?;
    let text = String::from_utf8(tampered.body.to_vec())?;
    let changed = text.replace("customer.example", "attacker.example");
    ensure!(changed != text);
    tampered.body = changed.into();
    let Ok(reply) = client.send(tampered).await else { bail!("no answer") };
    ensure!(reply.status == 403, "{}", reply.status);
    ensure!(moto.sent()?.is_empty());
    // The same call as it was signed is taken: it was the change that was refused.
    let Ok(reply) = client.send(signed()?).await else { bail!("no answer") };
    ensure!(reply.status == 200, "{}", reply.status);
    ensure!(moto.sent()?.len() == 1);
    Ok(())
}
