//! AUTH: which mechanism, and its exchange. That credentials never cross a network in clear is seen to in `settings`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    ehlo_capabilities::EhloCapabilities,
    failure::{Failure, Stage},
    observer::Observer,
    reply::SmtpReply,
    session::Session,
    settings::{Auth, AuthMechanism},
};

/// A mechanism that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Plain,
    Login,
    Xoauth2,
}

impl<O: Observer> Session<O> {
    /// Logs in. A server that does not offer a fitting mechanism needs a person.
    pub(crate) async fn authenticate(&mut self, auth: &Auth) -> Result<(), Failure> {
        let Some(mechanism) = choose(auth.mechanism, self.offers) else {
            let text = match auth.mechanism {
                AuthMechanism::Auto => "the relay offers neither AUTH PLAIN nor AUTH LOGIN",
                AuthMechanism::Plain => "the relay does not offer AUTH PLAIN",
                AuthMechanism::Login => "the relay does not offer AUTH LOGIN",
                AuthMechanism::Xoauth2 => "the relay does not offer AUTH XOAUTH2",
            };
            return Err(Failure::setup(Stage::Auth, text));
        };
        let (user, password) = (&auth.username, auth.password.expose_secret());
        let reply = match mechanism {
            Mechanism::Login => self.login(auth).await?,
            Mechanism::Plain => self.respond_at_once("AUTH PLAIN ", &format!("\0{user}\0{password}")).await?,
            Mechanism::Xoauth2 => {
                let response = format!("user={user}\x01auth=Bearer {password}\x01\x01");
                self.respond_at_once("AUTH XOAUTH2 ", &response).await?
            }
        };
        self.want_positive(Stage::Auth, reply)
    }

    /// PLAIN and XOAUTH2: everything is in the first line.
    async fn respond_at_once(&mut self, command: &str, response: &str) -> Result<SmtpReply, Failure> {
        let response = encode(response);
        let reply = self.command(Stage::Auth, &[command, response.expose_secret()]).await?;
        // XOAUTH2 explains a refusal in a challenge, and names it only after an empty answer.
        if reply.code == 334 { self.command(Stage::Auth, &[]).await } else { Ok(reply) }
    }

    /// The two challenges are answered in their order, whatever they say: servers disagree about the wording.
    async fn login(&mut self, auth: &Auth) -> Result<SmtpReply, Failure> {
        let reply = self.command(Stage::Auth, &["AUTH LOGIN"]).await?;
        if reply.code != 334 {
            return Err(self.unwanted(Stage::Auth, reply));
        }
        let username = encode(&auth.username);
        let reply = self.command(Stage::Auth, &[username.expose_secret()]).await?;
        if reply.code != 334 {
            return Err(self.unwanted(Stage::Auth, reply));
        }
        let password = encode(auth.password.expose_secret());
        self.command(Stage::Auth, &[password.expose_secret()]).await
    }
}

fn encode(secret: &str) -> SecretString {
    STANDARD.encode(secret).into()
}

fn choose(wanted: AuthMechanism, offers: EhloCapabilities) -> Option<Mechanism> {
    match wanted {
        AuthMechanism::Auto | AuthMechanism::Plain if offers.plain => Some(Mechanism::Plain),
        AuthMechanism::Auto | AuthMechanism::Login if offers.login => Some(Mechanism::Login),
        AuthMechanism::Xoauth2 if offers.xoauth2 => Some(Mechanism::Xoauth2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mechanism_that_is_wanted_and_offered_is_chosen() {
        let none = EhloCapabilities::default();
        let both = EhloCapabilities { plain: true, login: true, ..none };
        let login = EhloCapabilities { login: true, ..none };
        assert_eq!(choose(AuthMechanism::Auto, both), Some(Mechanism::Plain));
        assert_eq!(choose(AuthMechanism::Auto, login), Some(Mechanism::Login));
        assert_eq!(choose(AuthMechanism::Auto, EhloCapabilities { xoauth2: true, ..none }), None);
        assert_eq!(choose(AuthMechanism::Plain, login), None);
        assert_eq!(choose(AuthMechanism::Login, both), Some(Mechanism::Login));
        assert_eq!(choose(AuthMechanism::Xoauth2, both), None);
        assert_eq!(
            choose(AuthMechanism::Xoauth2, EhloCapabilities { xoauth2: true, ..none }),
            Some(Mechanism::Xoauth2)
        );
    }
}
