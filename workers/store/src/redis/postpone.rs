//! See [`crate::postpone`].

use std::time::Duration;

use jiff::Timestamp;

use super::{
    RedisStore,
    scripts::{final_of, keys, surprise},
    unreadable,
};
use crate::{
    StoreError,
    ledger::{LedgerKey, Postponed},
    millis,
    transitions::PostponeTransition,
};

impl RedisStore {
    /// See [`crate::transitions::postpone`].
    pub async fn postpone(
        &self,
        key: &LedgerKey,
        until: Timestamp,
        ahead: Duration,
        note: &str,
    ) -> Result<PostponeTransition, StoreError> {
        let mut call = self.link.scripts().postpone().prepare_invoke();
        call.key(keys(key.as_str()).0)
            .arg(until.as_millisecond().max(0))
            .arg(note)
            .arg(millis(self.options.life_of_postponed(ahead)));
        let answer: Vec<String> = self.link.invoke(&call).await?;
        let second = answer.get(1).map_or("", String::as_str);
        match answer.first().map(String::as_str) {
            Some("done") => Ok(PostponeTransition::Answer(Postponed::Done)),
            Some("in-hand") => Ok(PostponeTransition::Answer(Postponed::InHand)),
            Some("alias") => Ok(PostponeTransition::Follow(second.to_owned())),
            Some("settled") => {
                let end = final_of(second).map_err(|error| unreadable(&error))?;
                Ok(PostponeTransition::Answer(Postponed::Over(end)))
            }
            _ => Err(unreadable(&surprise())),
        }
    }
}
