//! `postrider keys`: API keys of the gateway.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use postrider_gateway::{
    keys::{self, KeyFile, KeyRecord, Keys, Scope},
    sigv4,
};
use postrider_schemas::{Lane, Tenant};
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::{
    ConfigArguments,
    output::{self, Format},
};

/// Arguments of `postrider keys`.
#[derive(Args)]
pub struct KeysArguments {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a key and show it once
    New(NewArguments),
    /// List keys; nothing secret is shown
    Ls(ListArguments),
    /// Show the access key id and the secret access key that AWS's clients use a key by
    Aws(AwsArguments),
    /// Revoke keys: gateways refuse them within seconds
    Revoke(RevokeArguments),
}

#[derive(Args)]
struct Place {
    /// The file, or the folder of files; else `gateway.keys`
    #[arg(long, value_name = "PATH")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Args)]
struct NewArguments {
    #[command(flatten)]
    place: Place,
    /// Whose mail it sends
    #[arg(long, default_value = Tenant::DEFAULT)]
    tenant: String,
    /// What it may do: send, read, cancel; everything where not given
    #[arg(long, value_delimiter = ',', value_parser = scope)]
    scope: Option<Vec<Scope>>,
    /// Domains that it may send from; `.shop.example` is everything below. Any where not given
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    sender_domain: Option<Vec<String>>,
    /// Lanes that it may use; both where not given
    #[arg(long, value_delimiter = ',')]
    lane: Option<Vec<Lane>>,
    /// Jobs a second, through each gateway
    #[arg(long)]
    rate: Option<u32>,
    /// Networks that it may be used from, such as 10.0.0.0/8
    #[arg(long, value_delimiter = ',')]
    network: Option<Vec<String>>,
    /// When it ends, such as 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<Timestamp>,
    /// A note for people
    #[arg(long)]
    note: Option<String>,
}

#[derive(Args)]
struct ListArguments {
    #[command(flatten)]
    place: Place,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Args)]
struct AwsArguments {
    #[command(flatten)]
    place: Place,
    /// Id, as `keys ls` shows it
    id: String,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Args)]
struct RevokeArguments {
    #[command(flatten)]
    place: Place,
    /// Ids, as `keys ls` shows them
    #[arg(required = true)]
    ids: Vec<String>,
}

fn scope(text: &str) -> Result<Scope, String> {
    serde_json::from_value(json!(text)).map_err(|_| "expected send, read or cancel".to_owned())
}

/// Exit status 0 if everything that was named was found, 1 if not.
pub fn run(arguments: KeysArguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        KeysCommand::New(arguments) => new(arguments),
        KeysCommand::Ls(arguments) => list(&arguments),
        KeysCommand::Aws(arguments) => aws(&arguments),
        KeysCommand::Revoke(arguments) => revoke(&arguments),
    }
}

impl Place {
    fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.keys {
            return Ok(path.clone());
        }
        self.config.load_to_look()?.gateway.keys.context("name the file by --keys, or by the setting `gateway.keys`")
    }
}

/// What a key is made of.
pub(super) fn random() -> anyhow::Result<[u8; 44]> {
    let mut random = [0; 44];
    let provider = rustls::crypto::ring::default_provider();
    provider.secure_random.fill(&mut random).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(random)
}

fn new(arguments: NewArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.place.path()?;
    let (text, id, sha256) = keys::make(&random()?);
    let record = KeyRecord {
        scopes: arguments.scope,
        sender_domains: arguments.sender_domain,
        lanes: arguments.lane,
        rate: arguments.rate,
        networks: arguments.network,
        expires_at: arguments.expires_at,
        note: arguments.note,
        ..KeyRecord::new(id.clone(), sha256, &arguments.tenant)
    };
    let file = if path.is_dir() { path.join(format!("{id}.toml")) } else { path };
    let mut all = if file.exists() { read(&file)? } else { KeyFile::default() };
    all.key.push(record);
    write(&file, &all)?;
    output::line(&text)?;
    output::remark(&format!("written to {}; this is the only time that the key is shown", file.display()));
    Ok(ExitCode::SUCCESS)
}

fn list(arguments: &ListArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.place.path()?;
    for file in keys::files(&path).with_context(|| path.display().to_string())? {
        for key in read(&file)?.key {
            match arguments.format {
                Format::Json => output::json(&json!({
                    "id": key.id, "tenant": key.tenant, "scopes": key.scopes, "sender_domains": key.sender_domains,
                    "lanes": key.lanes, "rate": key.rate, "networks": key.networks, "expires_at": key.expires_at,
                    "note": key.note,
                }))?,
                Format::Text => output::line(&described(&key))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The secret follows from the setting and the id: it can be shown again, and ends with its key.
fn aws(arguments: &AwsArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.place.config.load_to_look()?;
    let secret = config.gateway.signing_secret.as_ref();
    let secret = secret.context("setting `gateway.signing_secret` is missing: secret access keys are made from it")?;
    let path = arguments.place.path()?;
    if Keys::read(&path).map_err(anyhow::Error::msg)?.named(&arguments.id, Timestamp::now()).is_err() {
        output::remark(&format!("no key of {} has the id {}, or it has ended", path.display(), arguments.id));
        return Ok(ExitCode::FAILURE);
    }
    let secret = sigv4::secret_of(secret.expose_secret(), &arguments.id);
    match arguments.format {
        Format::Json => output::json(&json!({ "access_key_id": arguments.id, "secret_access_key": secret }))?,
        Format::Text => {
            output::line(&format!("AWS_ACCESS_KEY_ID={}", arguments.id))?;
            output::line(&format!("AWS_SECRET_ACCESS_KEY={secret}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn described(key: &KeyRecord) -> String {
    let mut line = format!("{}  tenant {}", key.id, key.tenant);
    let list = |list: &Option<Vec<String>>| list.as_ref().map(|list| list.join(", "));
    let parts = [
        ("scopes", key.scopes.as_ref().map(|list| format!("{list:?}").to_lowercase())),
        ("from", list(&key.sender_domains)),
        ("rate", key.rate.map(|rate| format!("{rate}/s"))),
        ("networks", list(&key.networks)),
        ("until", key.expires_at.map(|time| time.to_string())),
        ("note", key.note.clone()),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            line = format!("{line}, {name} {value}");
        }
    }
    line
}

fn revoke(arguments: &RevokeArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.place.path()?;
    let mut missing: Vec<&String> = arguments.ids.iter().collect();
    for file in keys::files(&path).with_context(|| path.display().to_string())? {
        let mut all = read(&file)?;
        let before = all.key.len();
        all.key.retain(|key| {
            !arguments.ids.contains(&key.id) || {
                missing.retain(|id| **id != key.id);
                false
            }
        });
        if all.key.len() < before {
            write(&file, &all)?;
        }
    }
    for id in &missing {
        output::remark(&format!("no key has the id {id}"));
    }
    output::line(&format!("revoked {}", arguments.ids.len() - missing.len()))?;
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &Path) -> anyhow::Result<KeyFile> {
    keys::read_file(file).map_err(anyhow::Error::msg)
}

/// Writes beside the file and puts it in its place at once: gateways read it at any time. Refuses what a gateway would.
fn write(file: &Path, all: &KeyFile) -> anyhow::Result<()> {
    Keys::new(all.key.clone()).map_err(anyhow::Error::msg)?;
    let text = toml::to_string(all)?;
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let mut options = fs::OpenOptions::new();
    let mut out = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .with_context(|| beside.display().to_string())?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&beside, file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        keys: KeysArguments,
    }

    fn keys(arguments: &[&str]) -> anyhow::Result<ExitCode> {
        run(Cli::try_parse_from(std::iter::once(&"keys").chain(arguments))?.keys)
    }

    #[test]
    fn a_key_is_made_and_revoked_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let at = file.display().to_string();
        keys(&["new", "--keys", &at, "--tenant", "shop", "--scope", "send,read", "--rate", "5"]).unwrap();
        keys(&["new", "--keys", &at, "--note", "second"]).unwrap();
        let all = read(&file).unwrap().key;
        assert_eq!((all.len(), all[0].tenant.as_str(), all[0].rate), (2, "shop", Some(5)));
        assert_eq!(all[0].scopes, Some(vec![Scope::Send, Scope::Read]));
        assert!(keys(&["new", "--keys", &at, "--tenant", "No Tenant"]).is_err());
        assert_eq!(keys(&["revoke", "--keys", &at, &all[0].id]).unwrap(), ExitCode::SUCCESS);
        assert_eq!(keys(&["revoke", "--keys", &at, &all[0].id]).unwrap(), ExitCode::FAILURE);
        assert_eq!(read(&file).unwrap().key, all[1..]);
    }
}
