//! Credentials out of answers: a provider, or a machine in between, may repeat what it was sent, and answers end up in logs and events. Pure.

use secrecy::{ExposeSecret as _, SecretString};

use super::{encoding::base64, reply::Verdict};
use crate::config::Account;

/// The verdict without the account's credentials in its text.
pub fn scrubbed(verdict: Verdict, account: &Account) -> Verdict {
    match verdict {
        Verdict::Taken(id) => Verdict::Taken(without(id, account)),
        Verdict::Refused { class, text, retry_after } => {
            Verdict::Refused { class, text: without(text, account), retry_after }
        }
        Verdict::Unclear(text) => Verdict::Unclear(without(text, account)),
    }
}

fn without(mut text: String, account: &Account) -> String {
    for secret in secrets(account).iter().filter(|secret| !secret.is_empty()) {
        if text.contains(secret) {
            text = text.replace(secret, "[secret]");
        }
    }
    text
}

/// What goes over the wire of an account's credentials, as it goes there.
fn secrets(account: &Account) -> Vec<String> {
    let plain = |secret: &SecretString| secret.expose_secret().to_owned();
    let login = |user: &str, password: &SecretString| base64(format!("{user}:{}", password.expose_secret()).as_bytes());
    match account {
        Account::Sendgrid { api_key }
        | Account::Postmark { api_key, .. }
        | Account::Resend { api_key }
        | Account::Brevo { api_key }
        | Account::Sparkpost { api_key, .. } => vec![plain(api_key)],
        Account::Mailgun { api_key, .. } => vec![login("api", api_key), plain(api_key)],
        Account::Mailjet { api_key, secret_key } => {
            vec![login(api_key.expose_secret(), secret_key), plain(api_key), plain(secret_key)]
        }
        // Both sign with a key that stays here.
        Account::Ses(_) | Account::Webhook { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Class;

    #[test]
    fn no_form_of_a_key_stays_in_an_answer() {
        let account = Account::Mailjet { api_key: "public".into(), secret_key: "private".into() };
        let text = "no: public, private, cHVibGljOnByaXZhdGU=";
        let clean = "no: [secret], [secret], [secret]";
        assert_eq!(scrubbed(Verdict::Taken(text.to_owned()), &account), Verdict::Taken(clean.to_owned()));
        assert_eq!(scrubbed(Verdict::Unclear(text.to_owned()), &account), Verdict::Unclear(clean.to_owned()));
        assert_eq!(scrubbed(Verdict::refused(Class::Config, text), &account), Verdict::refused(Class::Config, clean));
    }
}
