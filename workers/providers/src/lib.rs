#![doc = include_str!("../README.md")]

pub mod batch;
pub mod description;
pub mod encoding;
pub mod fields;
pub mod message;
pub mod multipart;
pub mod named;
pub mod rate_limit_headers;
pub mod reply;
pub mod request;
pub mod sigv4;
pub mod unsupported;

use jiff::Timestamp;
use secrecy::SecretString;

use self::{
    batch::Batched,
    description::{Api, Description, SettingError, Settings},
    reply::{ProviderReply, ReplyVerdict},
};

/// Makes the modules, the kinds, the reading of settings and the dispatch of all providers.
macro_rules! providers {
    ($($variant:ident = $module:ident::$account:ident,)*) => {
        $(pub mod $module;)*

        /// An account at a provider. `Debug` shows everything but secrets.
        #[derive(Debug, Clone)]
        pub enum Account {
            $(#[doc = concat!("See [`", stringify!($module), "`].")] $variant($module::$account),)*
        }

        /// Every provider.
        pub const ALL: &[&Description] = &[$(&$module::DESCRIPTION,)*];

        impl Account {
            /// Makes an account of its settings; nothing for a kind that is none.
            pub fn read(kind: &str, settings: &mut Settings) -> Option<Result<Self, SettingError>> {
                $(if kind == $module::DESCRIPTION.kind {
                    return Some($module::$account::read(settings).map(Self::$variant));
                })*
                None
            }

            /// What the provider says of itself.
            pub fn description(&self) -> &'static Description {
                match self {
                    $(Self::$variant(_) => &$module::DESCRIPTION,)*
                }
            }

            /// The provider's API with this account.
            pub fn api(&self) -> &dyn Api {
                match self {
                    $(Self::$variant(account) => account,)*
                }
            }
        }

        $(impl From<$module::$account> for Account {
            fn from(account: $module::$account) -> Self {
                Self::$variant(account)
            }
        })*
    };
}

// One line for each provider: its name here, its file, and its account there.
providers! {
    Sendgrid = sendgrid::Sendgrid,
    Ses = ses::SesAccount,
    Mailgun = mailgun::Mailgun,
    Postmark = postmark::Postmark,
    Resend = resend::Resend,
    Brevo = brevo::Brevo,
    Sparkpost = sparkpost::Sparkpost,
    Mailjet = mailjet::Mailjet,
    Webhook = webhook::Webhook,
    Lettermint = lettermint::Lettermint,
    MailerSend = mailersend::MailerSend,
}

/// The provider with this word in the configuration.
pub fn find(kind: &str) -> Option<&'static Description> {
    ALL.iter().copied().find(|one| one.kind == kind)
}

impl Account {
    /// Every secret of the account.
    pub fn secrets(&self) -> Vec<&SecretString> {
        self.api().secrets()
    }

    /// What an answer means for the message. One that asks for patience without saying for how long waits for the next window that its headers name.
    pub fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        rate_limit_headers::patient(self.api().verdict(reply, now), reply, now)
    }

    /// The same for a shared call.
    pub fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        let patient = |verdict| rate_limit_headers::patient(verdict, reply, now);
        match self.api().batch_verdict(reply, now) {
            Batched::Whole(verdict) => Batched::Whole(patient(verdict)),
            Batched::Each(list) => Batched::Each(list.into_iter().map(patient).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use postrider_policy::capabilities::Needs;

    use super::*;

    #[test]
    fn every_kind_is_found_once_and_carries_a_plain_message() {
        let mut words = BTreeSet::new();
        let needs = Needs { attachments: true, recipients: 1, bytes: 100, ..Needs::default() };
        for one in ALL {
            assert!(words.insert(one.kind), "{} stands there twice", one.kind);
            assert_eq!(find(one.kind).map(|found| found.name), Some(one.name));
            assert_eq!(one.capabilities.lack(&needs), None, "{}", one.kind);
            assert_eq!(one.capabilities.batch_max > 1, one.batching.is_some(), "{}", one.kind);
            assert!(one.settings.iter().all(|setting| setting.help.ends_with('.')), "{}", one.kind);
        }
        assert!(find("smtp").is_none() && Account::read("pigeon", &mut Settings::default()).is_none());
    }

    #[test]
    fn an_account_without_settings_names_one_that_is_needed() {
        for one in ALL {
            let error = Account::read(one.kind, &mut Settings::default()).unwrap().unwrap_err();
            let is_needed = one.settings.iter().any(|setting| setting.is_needed && setting.name == error.field);
            assert!(is_needed && error.reason.is_none(), "{}: {error:?}", one.kind);
        }
    }
}
