//! Templates that broke a limit, by a hash of sources and variables: their copies need not be tried.

use std::collections::{HashMap, VecDeque};

/// So many are remembered.
const KEPT_MAX: usize = 1024;
/// A template with which so many processes were lost for no reason that is known is taken for the reason.
const STRIKES_MAX: u32 = 3;

/// A hash of sources and variables.
pub(super) type Key = [u8; 32];

/// What is remembered.
#[derive(Default)]
pub(super) struct Refused {
    marks: HashMap<Key, Mark>,
    /// The oldest one first.
    order: VecDeque<Key>,
}

enum Mark {
    Limit(String),
    Strikes(u32),
}

impl Refused {
    /// Why this one is refused.
    pub(super) fn reason(&self, key: &Key) -> Option<&str> {
        match self.marks.get(key)? {
            Mark::Limit(reason) => Some(reason),
            Mark::Strikes(_) => None,
        }
    }

    /// This one broke a limit.
    pub(super) fn limit(&mut self, key: Key, reason: String) {
        self.put(key, Mark::Limit(reason));
    }

    /// A process was lost with this one. True where it is refused from now on.
    pub(super) fn strike(&mut self, key: Key, reason: &str) -> bool {
        let before = match self.marks.get(&key) {
            Some(Mark::Strikes(strikes)) => *strikes,
            _ => 0,
        };
        let is_enough = before + 1 >= STRIKES_MAX;
        self.put(key, if is_enough { Mark::Limit(reason.to_owned()) } else { Mark::Strikes(before + 1) });
        is_enough
    }

    fn put(&mut self, key: Key, mark: Mark) {
        if self.marks.insert(key, mark).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.marks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> Key {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        key
    }

    #[test]
    fn what_broke_a_limit_is_remembered_and_the_oldest_forgotten() {
        let mut refused = Refused::default();
        for n in 0..2000 {
            refused.limit(key(n), n.to_string());
        }
        assert_eq!((refused.marks.len(), refused.order.len()), (KEPT_MAX, KEPT_MAX));
        assert_eq!(refused.reason(&key(1999)), Some("1999"));
        assert_eq!(refused.reason(&key(0)), None);
    }

    #[test]
    fn a_template_with_which_three_processes_were_lost_is_refused() {
        let mut refused = Refused::default();
        assert_eq!([(); 3].map(|()| refused.strike(key(1), "lost")), [false, false, true]);
        assert_eq!(refused.reason(&key(1)), Some("lost"));
        assert!(!refused.strike(key(2), "lost"));
    }
}
