//! API keys: who may send what. Secrets stand in their file as SHA-256 alone; a key is random, so a slow hash would add nothing.

use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use postrider_schemas::{Lane, Tenant};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    idempotency::hex,
    problem::{Kind, Problem},
};

/// What a key begins with.
const PREFIX: &str = "prk_";
/// SendGrid's clients expect their keys to begin so, and one refuses others.
const SENDGRID_PREFIX: &str = "SG.";
/// Letters of ids and secrets: no vowels and nothing that looks like something else.
const LETTERS: &[u8; 32] = b"0123456789bcdfghjklmnpqrstvwxyzA";
/// 60 bits: enough that no two keys share one.
const ID_LETTERS: usize = 12;
/// 160 bits.
const SECRET_LETTERS: usize = 32;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Hand jobs over.
    Send,
    /// See what became of jobs.
    Read,
    /// Call jobs back, or move their time.
    Cancel,
}

impl Scope {
    /// All of them, which is what a key has that names none.
    pub const ALL: [Self; 3] = [Self::Send, Self::Read, Self::Cancel];
}

/// One key, as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The part of the key that is no secret.
    pub id: String,
    /// SHA-256 of the whole key, 64 hexadecimal digits.
    pub sha256: String,
    /// Whose mail it sends.
    pub tenant: String,
    /// What it may do; everything where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<Scope>>,
    /// Domains that it may send from; `.shop.example` is everything below. Any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_domains: Option<Vec<String>>,
    /// Lanes that it may use; both where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<Vec<Lane>>,
    /// Jobs a second through each gateway; unlimited where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Networks that it may be used from, such as `10.0.0.0/8`; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl KeyRecord {
    /// A key that may do everything for a tenant.
    pub fn new(id: String, sha256: String, tenant: &str) -> Self {
        Self {
            id,
            sha256,
            tenant: tenant.to_owned(),
            scopes: None,
            sender_domains: None,
            lanes: None,
            rate: None,
            networks: None,
            expires_at: None,
            note: None,
        }
    }
}

/// A file of keys.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// The keys.
    #[serde(default)]
    pub key: Vec<KeyRecord>,
}

/// A key that was checked when it was read.
#[derive(Debug, Clone)]
pub struct Key {
    /// The part that is no secret.
    pub id: String,
    /// Whose mail it sends.
    pub tenant: Tenant,
    /// Jobs a second.
    pub rate: Option<u32>,
    sha256: [u8; 32],
    scopes: Vec<Scope>,
    sender_domains: Option<Vec<String>>,
    lanes: Option<Vec<Lane>>,
    networks: Option<Vec<Network>>,
    expires_at: Option<Timestamp>,
}

impl Key {
    /// Whether it may do this, asked from this address.
    pub fn check(&self, scope: Scope, peer: IpAddr) -> Result<(), Problem> {
        if self.networks.as_ref().is_some_and(|list| !list.iter().any(|network| network.contains(peer))) {
            return Err(Problem::new(Kind::Forbidden, "The API key may not be used from this network."));
        }
        if !self.scopes.contains(&scope) {
            let word = format!("{scope:?}").to_lowercase();
            return Err(Problem::new(Kind::Forbidden, format!("The API key has no scope `{word}`.")));
        }
        Ok(())
    }

    /// Whether it may send from this domain.
    pub fn check_sender(&self, domain: &str) -> Result<(), Problem> {
        let fits = |allowed: &String| match allowed.strip_prefix('.') {
            Some(above) => domain.strip_suffix(above).is_some_and(|rest| rest.ends_with('.')),
            None => domain == allowed,
        };
        match &self.sender_domains {
            Some(list) if !list.iter().any(fits) => {
                Err(Problem::field(Kind::SenderForbidden, "/from", "The API key may not send from this domain."))
            }
            _ => Ok(()),
        }
    }

    /// Whether it may use this lane.
    pub fn check_lane(&self, lane: Lane) -> Result<(), Problem> {
        match &self.lanes {
            Some(list) if !list.contains(&lane) => {
                Err(Problem::field(Kind::Forbidden, "/lane", format!("The API key may not use the lane `{lane}`.")))
            }
            _ => Ok(()),
        }
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    base: u128,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().ok()?;
        // All of them are counted as IPv6: a listener on `::` shows IPv4 peers so.
        let shift = if address.is_ipv4() { 96 } else { 0 };
        let bits = length.map_or(Some(128), |length| length.parse::<u32>().ok()?.checked_add(shift))?;
        (bits <= 128).then(|| Self { base: as_v6(address) & mask(bits), bits })
    }

    fn contains(self, address: IpAddr) -> bool {
        as_v6(address) & mask(self.bits) == self.base
    }
}

fn as_v6(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits).unwrap_or_default()
}

/// All keys of a gateway.
#[derive(Debug, Default)]
pub struct Keys(HashMap<String, Key>);

impl Keys {
    /// Checks records. The error names the key and what is wrong with it.
    pub fn new(records: Vec<KeyRecord>) -> Result<Self, String> {
        let mut keys = HashMap::with_capacity(records.len());
        for record in records {
            let id = record.id.clone();
            let key = checked(record).map_err(|error| format!("key `{}`: {error}", id.escape_debug()))?;
            if keys.insert(id.clone(), key).is_some() {
                return Err(format!("key `{}` stands there twice", id.escape_debug()));
            }
        }
        Ok(Self(keys))
    }

    /// Reads a file, or every `*.toml` of a folder.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut records = Vec::new();
        for file in files(path).map_err(|error| format!("{}: {error}", path.display()))? {
            records.extend(read_file(&file)?.key);
        }
        Self::new(records)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key that was shown before, as it is now: it may have been revoked, replaced or ended.
    pub fn present(&self, shown: &Key, now: Timestamp) -> Result<&Key, Problem> {
        let is_alive = |key: &&Key| key.sha256 == shown.sha256 && key.expires_at.is_none_or(|end| end > now);
        let ended = || Problem::new(Kind::Unauthorized, "The API key was revoked or has expired.");
        self.0.get(&shown.id).filter(is_alive).ok_or_else(ended)
    }

    /// The key that this text is. What is wrong with it is not told: whoever guesses learns nothing.
    pub fn authenticate(&self, text: &str, now: Timestamp) -> Result<&Key, Problem> {
        let refused = || Problem::new(Kind::Unauthorized, "The API key is unknown, revoked or expired.");
        let text = text.strip_prefix(SENDGRID_PREFIX).unwrap_or(text);
        let id = id_of(text).ok_or_else(refused)?;
        let given: [u8; 32] = Sha256::digest(text).into();
        let key = self.0.get(id).ok_or_else(refused)?;
        let is_expired = key.expires_at.is_some_and(|end| end <= now);
        if is_expired || !is_equal(&key.sha256, &given) { Err(refused()) } else { Ok(key) }
    }

    /// The key of this id, for requests that prove in another way that they have its secret.
    pub fn named(&self, id: &str, now: Timestamp) -> Result<&Key, Problem> {
        let key = self.0.get(id).filter(|key| key.expires_at.is_none_or(|end| end > now));
        key.ok_or_else(|| Problem::new(Kind::Unauthorized, "The API key is unknown, revoked or expired."))
    }
}

fn checked(record: KeyRecord) -> Result<Key, String> {
    let sha256 = unhex(&record.sha256).ok_or("`sha256` is 64 hexadecimal digits")?;
    let tenant = Tenant::parse(&record.tenant).map_err(|error| error.to_string())?;
    if record.rate == Some(0) {
        return Err("`rate` is at least 1".to_owned());
    }
    let networks = record
        .networks
        .map(|list| {
            let one = |text: &String| {
                Network::parse(text)
                    .ok_or_else(|| format!("`{}` is no network such as 10.0.0.0/8", text.escape_debug()))
            };
            list.iter().map(one).collect::<Result<Vec<_>, _>>()
        })
        .transpose()?;
    Ok(Key {
        id: record.id,
        tenant,
        rate: record.rate,
        sha256,
        scopes: record.scopes.unwrap_or_else(|| Scope::ALL.to_vec()),
        sender_domains: record.sender_domains.map(|list| list.iter().map(|one| one.to_lowercase()).collect()),
        lanes: record.lanes,
        networks,
        expires_at: record.expires_at,
    })
}

/// `prk_<id>_<secret>`
fn id_of(text: &str) -> Option<&str> {
    text.strip_prefix(PREFIX)?.split_once('_').map(|(id, _)| id).filter(|id| !id.is_empty())
}

/// Looks at every byte whatever the first ones are: how long it takes tells nothing of a secret.
pub(crate) fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A new key from 44 random bytes: its text, which is shown once, and its id and hash, which are kept.
pub fn make(random: &[u8; ID_LETTERS + SECRET_LETTERS]) -> (String, String, String) {
    let letters: String = random.iter().map(|byte| char::from(LETTERS[usize::from(byte & 31)])).collect();
    let (id, secret) = letters.split_at(ID_LETTERS);
    let text = format!("{PREFIX}{id}_{secret}");
    let sha256 = hex(&Sha256::digest(&text));
    (text, id.to_owned(), sha256)
}

/// Id and hash of a key that was made before; nothing where the text is none.
pub fn parts(text: &str) -> Option<(String, String)> {
    Some((id_of(text)?.to_owned(), hex(&Sha256::digest(text))))
}

/// The files that hold keys: the path itself, or what is in it, in the order of names.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_ours = |path: &PathBuf| {
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        path.extension().is_some_and(|end| end == "toml") && !is_hidden
    };
    let listed: io::Result<Vec<PathBuf>> = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect();
    let mut files: Vec<PathBuf> = listed?.into_iter().filter(is_ours).collect();
    files.sort_unstable();
    Ok(files)
}

/// Reads one file of keys.
pub fn read_file(file: &Path) -> Result<KeyFile, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = fs::read_to_string(file).map_err(|error| at(&error))?;
    // The error of the parser shows the line, which may hold anything.
    toml::from_str(&text).map_err(|error| at(&error.message()))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
