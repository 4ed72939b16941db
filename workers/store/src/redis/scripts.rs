//! The Lua scripts: loaded once, called with typed arguments, their answers parsed. One key hash slot each.

use std::sync::Arc;

use futures_util::{TryStreamExt as _, stream};
use redis::{ErrorKind, RedisError, RedisResult, Script};

use super::address::Conn;
use crate::ledger::Final;

/// Into so many slots the records are spread. Fixed: another number would lose every record.
const SPREAD: u32 = 256;

/// All scripts.
#[derive(Clone)]
pub struct Scripts(Arc<ScriptSet>);

struct ScriptSet {
    claim: Script,
    step: Script,
    cancel: Script,
    alias: Script,
    reopen: Script,
    postpone: Script,
    epoch: Script,
    circuit: Script,
    probe: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("prelude.lua"), include_str!($file)))
    };
}

impl Scripts {
    /// Hashes the texts.
    pub fn new() -> Self {
        Self(Arc::new(ScriptSet {
            claim: script!("claim.lua"),
            step: script!("step.lua"),
            cancel: script!("cancel.lua"),
            alias: script!("alias.lua"),
            reopen: script!("reopen.lua"),
            postpone: script!("postpone.lua"),
            epoch: Script::new(include_str!("epoch.lua")),
            circuit: Script::new(include_str!("circuit.lua")),
            probe: Script::new(include_str!("probe.lua")),
        }))
    }

    /// `claim.lua`
    pub fn claim(&self) -> &Script {
        &self.0.claim
    }
    /// `step.lua`
    pub fn step(&self) -> &Script {
        &self.0.step
    }
    /// `cancel.lua`
    pub fn cancel(&self) -> &Script {
        &self.0.cancel
    }
    /// `alias.lua`
    pub fn alias(&self) -> &Script {
        &self.0.alias
    }
    /// `reopen.lua`
    pub fn reopen(&self) -> &Script {
        &self.0.reopen
    }

    /// `postpone.lua`
    pub fn postpone(&self) -> &Script {
        &self.0.postpone
    }

    /// `circuit.lua`
    pub fn circuit(&self) -> &Script {
        &self.0.circuit
    }

    /// Calls what all scripts call, with a key that nobody reads: fails where the user may not.
    pub async fn probe(&self, conn: &mut Conn) -> RedisResult<()> {
        self.0.probe.prepare_invoke().key("postrider:{00}:probe").invoke_async(conn).await
    }

    /// Writes the epochs that are missing: in one call, or one a slot.
    pub async fn write_epochs(&self, conn: &mut Conn, cluster: bool) -> RedisResult<()> {
        let names: Vec<String> = (0..SPREAD).map(epoch_name).collect();
        let per_call = if cluster { 1 } else { names.len() };
        stream::iter(names.chunks(per_call).map(Ok))
            .try_for_each_concurrent(32, |names| {
                let mut conn = conn.clone();
                async move {
                    let mut call = self.0.epoch.prepare_invoke();
                    for name in names {
                        call.key(name);
                    }
                    call.invoke_async::<()>(&mut conn).await
                }
            })
            .await
    }
}

/// The key of a record, and of the epoch in the same slot.
pub fn keys(ledger_key: &str) -> (String, String) {
    // FNV-1a: stable over versions and machines, which the standard hasher is not.
    let hash =
        ledger_key.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let slot = (hash ^ (hash >> 16)) % SPREAD;
    (format!("postrider:{{{slot:02x}}}:{ledger_key}"), epoch_name(slot))
}

fn epoch_name(slot: u32) -> String {
    format!("postrider:{{{slot:02x}}}:epoch")
}

/// An answer that our own scripts do not give.
pub fn surprise() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "an answer that no script of ours gives").into()
}

/// Reads a word of [`Final`].
pub fn final_of(word: &str) -> RedisResult<Final> {
    Final::parse(word).ok_or_else(surprise)
}

/// Reads a number of an answer.
pub fn number<T: std::str::FromStr>(text: Option<&String>) -> RedisResult<T> {
    text.and_then(|text| text.parse().ok()).ok_or_else(surprise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_and_its_epoch_share_a_slot_and_the_names_never_change() {
        assert_eq!(keys("i:0"), ("postrider:{e7}:i:0".to_owned(), "postrider:{e7}:epoch".to_owned()));
    }

    #[test]
    fn records_spread_evenly() {
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for n in 0..25_600 {
            *seen.entry(keys(&format!("i:0190{n:08}")).1).or_default() += 1;
        }
        assert_eq!(seen.len(), 256);
        assert!(seen.values().all(|n| (50..200).contains(n)), "{seen:?}");
    }
}
