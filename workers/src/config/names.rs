//! Names that limits and shaping rules use, and what all of their checks have in common.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConfigError, TransportConfig};
use crate::policy::rate_limit::rate::Rate;

/// The value of a factor that is not given.
pub(super) fn one() -> f64 {
    1.0
}

/// What the checks look at beside the settings themselves.
pub(super) struct ScopeNames<'a> {
    /// Groups of domains that routes use, which throttles may use too.
    pub(super) groups: &'a BTreeMap<String, Vec<String>>,
    /// Transports in order.
    pub(super) transports: &'a [TransportConfig],
}

impl ScopeNames<'_> {
    pub(super) fn knows_transport(&self, name: &str) -> bool {
        self.transports.iter().any(|one| one.name == name)
    }
}

/// A name that people can read and write.
pub(super) fn named(at: &str, name: &str) -> Result<(), ConfigError> {
    if name.trim().is_empty() {
        return Err(ConfigError::value(at, "the name is empty"));
    }
    if name.contains(char::is_control) {
        return Err(ConfigError::value(at.escape_debug().to_string(), "the name has a control character"));
    }
    Ok(())
}

/// One bucket per unit.
pub(super) fn distinct(at: &str, rates: &[Rate]) -> Result<(), ConfigError> {
    let mut periods = BTreeSet::new();
    match rates.iter().find(|rate| !periods.insert(rate.period())) {
        Some(rate) => Err(ConfigError::value(at, format!("two rates per {}", rate.period().as_str()))),
        None => Ok(()),
    }
}
