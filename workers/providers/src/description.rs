//! What a provider says of itself: its word in the configuration, its settings, what it can carry, how its calls are shared.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use jiff::Timestamp;
use postrider_policy::capabilities::Capabilities;
use secrecy::SecretString;
use url::Url;

use crate::{
    batch::{Batched, Item},
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    sigv4::Keys,
    unsupported::Unsupported,
};

/// A provider.
#[derive(Debug)]
pub struct Description {
    /// The word in the configuration, in logs and metrics.
    pub kind: &'static str,
    /// How people call it.
    pub name: &'static str,
    /// Where its API is; nothing where the account says it.
    pub base_url: Option<&'static str>,
    /// What an account is made of, beside what all providers have.
    pub settings: &'static [Setting],
    /// What it can carry. An account's settings may widen it: see [`Api::capabilities`].
    pub capabilities: Capabilities,
    /// How calls are shared, where they are.
    pub batching: Option<Batching>,
    /// What else the table of documents says.
    pub notes: Notes,
}

/// How several jobs share a call.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Largest body, in bytes: safely below what the provider documents for a whole call.
    pub bytes_max: usize,
    /// An item's `shared` part is the content, and its own one no more than the recipient: such an API makes one message for each of them, takes
    /// jobs with one recipient only, and an address once in a call.
    pub shares_content: bool,
}

/// What the table of documents says beside what follows from the rest.
#[derive(Debug, Clone, Copy)]
pub struct Notes {
    /// Settings that may stand in the place of those that are needed.
    pub needs: &'static str,
    /// With which setting opens and clicks are counted, where they are not by themselves.
    pub tracking: &'static str,
    /// With which setting a call may be repeated, where it may not by itself.
    pub repeats: &'static str,
}

impl Notes {
    /// What holds for most providers.
    pub const USUAL: Self = Self { needs: "", tracking: "tracking = true", repeats: "" };
}

/// A setting of an account.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in the configuration.
    pub name: &'static str,
    /// How it is written.
    pub form: SettingForm,
    /// Whether there is no account without it.
    pub is_needed: bool,
    /// What it means.
    pub help: &'static str,
}

/// How a setting is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingForm {
    /// A secret: a text, or where to find one.
    Secret,
    /// A text.
    Text,
    /// `true` or `false`.
    Flag,
    /// The path of a file.
    Path,
    /// An address.
    Url,
}

impl Setting {
    /// A secret that is needed.
    pub const fn secret(name: &'static str, help: &'static str) -> Self {
        Self { name, form: SettingForm::Secret, is_needed: true, help }
    }

    /// A text that is needed.
    pub const fn text(name: &'static str, help: &'static str) -> Self {
        Self { name, form: SettingForm::Text, is_needed: true, help }
    }

    /// Something that may be left out.
    pub const fn optional(name: &'static str, form: SettingForm, help: &'static str) -> Self {
        Self { name, form, is_needed: false, help }
    }

    /// The key of an API, which most accounts are.
    pub const API_KEY: Self = Self::secret("api_key", "The API key.");
}

/// The value of a setting. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub enum SettingValue {
    /// A secret, found already.
    Secret(SecretString),
    /// A text.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// The path of a file.
    Path(PathBuf),
    /// An address.
    Url(Url),
}

/// The settings of an account, as they are taken one by one.
#[derive(Debug, Default)]
pub struct Settings(pub BTreeMap<&'static str, SettingValue>);

/// Why settings make no account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingError {
    /// The setting.
    pub field: &'static str,
    /// What is wrong; nothing where it is missing.
    pub reason: Option<String>,
}

impl SettingError {
    /// It is missing.
    pub fn missing(field: &'static str) -> Self {
        Self { field, reason: None }
    }

    /// It is wrong.
    pub fn wrong(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: Some(reason.into()) }
    }
}

impl Settings {
    /// A secret that is needed.
    pub fn secret(&mut self, name: &'static str) -> Result<SecretString, SettingError> {
        self.some_secret(name).ok_or_else(|| SettingError::missing(name))
    }

    /// A secret that may be left out.
    pub fn some_secret(&mut self, name: &'static str) -> Option<SecretString> {
        match self.0.remove(name)? {
            SettingValue::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    /// A text that is needed.
    pub fn text(&mut self, name: &'static str) -> Result<String, SettingError> {
        self.some_text(name).filter(|text| !text.is_empty()).ok_or_else(|| SettingError::missing(name))
    }

    /// A text that may be left out.
    pub fn some_text(&mut self, name: &'static str) -> Option<String> {
        match self.0.remove(name)? {
            SettingValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// `true` where it says so.
    pub fn flag(&mut self, name: &'static str) -> bool {
        matches!(self.0.remove(name), Some(SettingValue::Flag(true)))
    }

    /// The path of a file.
    pub fn some_path(&mut self, name: &'static str) -> Option<PathBuf> {
        match self.0.remove(name)? {
            SettingValue::Path(path) => Some(path),
            _ => None,
        }
    }

    /// An address.
    pub fn some_url(&mut self, name: &'static str) -> Option<Url> {
        match self.0.remove(name)? {
            SettingValue::Url(url) => Some(url),
            _ => None,
        }
    }

    /// Whether it is given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// What is known when a request is made, beside the message.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The host as the client will send it: with the port where it is not the scheme's own.
    pub host: &'a str,
    /// The keys to sign with, for accounts that sign.
    pub keys: Option<&'a Keys>,
    /// The time.
    pub now: Timestamp,
}

/// An account at a provider: what a request says, and what an answer means. Pure.
pub trait Api: fmt::Debug + Credentials {
    /// The request for one message.
    fn request(&self, message: &Message<'_>, call: Call<'_>) -> Result<Request, Unsupported>;

    /// What the answer to it means.
    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict;

    /// The message as a part of a call with others; an error where it has to go alone, or does not fit at all.
    fn item(&self, message: &Message<'_>) -> Result<Item, Unsupported> {
        let _ = message;
        Err(Unsupported::Value("shared calls".to_owned()))
    }

    /// The request for several messages; nothing where calls cannot be shared.
    fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        let _ = items;
        None
    }

    /// What the answer to a shared call means.
    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        Batched::Whole(self.verdict(reply, now))
    }

    /// Where the API of this account is, where its settings say so.
    fn base_url(&self) -> Option<String> {
        None
    }

    /// What the account can carry, where its settings widen the table.
    fn capabilities(&self, table: Capabilities) -> Capabilities {
        table
    }
}

/// What an account must never show.
pub trait Credentials {
    /// Every secret of the account.
    fn secrets(&self) -> Vec<&SecretString>;
}

/// An account whose settings are its fields: how each is read is said in the place of its type. What is read as a secret is one of its
/// [`Credentials`].
macro_rules! account {
    ($(#[$of_account:meta])* pub struct $account:ident { $($(#[$of_field:meta])* $field:ident: $form:ident,)+ }) => {
        $(#[$of_account])*
        #[derive(Debug, Clone)]
        pub struct $account {
            $($(#[$of_field])* pub $field: $crate::description::account!(@type $form),)+
        }

        impl $account {
            /// Makes the account of its settings.
            pub fn read(
                settings: &mut $crate::description::Settings,
            ) -> Result<Self, $crate::description::SettingError> {
                Ok(Self { $($field: $crate::description::account!(@read $form settings $field),)+ })
            }
        }

        impl $crate::description::Credentials for $account {
            fn secrets(&self) -> Vec<&secrecy::SecretString> {
                let all = [$($crate::description::account!(@secret $form self $field)),+];
                all.into_iter().flatten().collect()
            }
        }
    };
    (@type secret) => { secrecy::SecretString };
    (@type text) => { String };
    (@type some_text) => { Option<String> };
    (@type flag) => { bool };
    (@read secret $settings:ident $field:ident) => { $settings.secret(stringify!($field))? };
    (@read text $settings:ident $field:ident) => { $settings.text(stringify!($field))? };
    (@read $form:ident $settings:ident $field:ident) => { $settings.$form(stringify!($field)) };
    (@secret secret $self:ident $field:ident) => { Some(&$self.$field) };
    (@secret $form:ident $self:ident $field:ident) => { None };
}
pub(crate) use account;

impl Description {
    /// The row of this provider in the documents' table.
    pub fn row(&self) -> String {
        let needed: Vec<String> = [("base_url", self.base_url.is_none() && !self.is_by_region())]
            .into_iter()
            .chain(self.settings.iter().map(|one| (one.name, one.is_needed)))
            .filter(|(_, is_needed)| *is_needed)
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        let of = &self.capabilities;
        let with = |is: bool, setting: &str| match (is, setting) {
            (true, _) => "yes".to_owned(),
            (false, "") => "no".to_owned(),
            (false, setting) => format!("with `{setting}`"),
        };
        let tags = if of.tags_max == usize::MAX { "any".to_owned() } else { of.tags_max.to_string() };
        let content = if of.bytes_max == usize::MAX { "any".to_owned() } else { format!("{} MiB", of.bytes_max >> 20) };
        let shares = if of.batch_max > 1 { of.batch_max.to_string() } else { "no".to_owned() };
        let repeats = match of.idempotency.map(|time| time.as_secs()) {
            Some(seconds) if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
            Some(seconds) => format!("{} min", seconds / 60),
            None => with(false, self.notes.repeats),
        };
        let cells = [
            format!("`{}`", self.kind),
            format!("{}{}", needed.join(", "), self.notes.needs),
            with(of.opens && of.clicks, self.notes.tracking),
            with(of.inline, ""),
            tags,
            content,
            shares,
            repeats,
        ];
        format!("| {} |", cells.join(" | "))
    }

    /// Its address is made of the account's region.
    fn is_by_region(&self) -> bool {
        self.settings.iter().any(|one| one.name == "region")
    }
}

/// So many bytes.
pub const MIB: usize = 1024 * 1024;
