//! How many file descriptors this process may have, and how many it may need.

use crate::{admin, config::Config};

/// Descriptors for everything that is not counted: broker, store, files, the runtime's own, log and exporters.
const BESIDE: u64 = 64;

/// Whether the limit on file descriptors fits a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Enough,
    /// Not when everything happens at once.
    Tight {
        /// What may be needed.
        needed: u64,
    },
    /// Not for one connection of each transport.
    TooFew {
        /// What is needed at least.
        needed: u64,
    },
}

/// Raises the soft limit to the hard one where that may be, and says what it is then; nothing where the system does not tell.
pub fn raised() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).or_else(|_| rlimit::Resource::NOFILE.get_soft()).ok()
}

/// Compares. A job in hand may ask DNS, which takes one.
pub fn fit(config: &Config, limit: u64) -> Fit {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let connections: u64 = config.transports.iter().map(|one| count(one.connections())).sum();
    let slots = u64::from(config.worker.transactional) + u64::from(config.worker.bulk);
    let admin = if config.admin.is_some() { count(admin::CONNECTIONS) } else { 0 };
    let least = BESIDE + count(config.transports.len());
    let needed = BESIDE + connections + slots + admin;
    if limit < least {
        Fit::TooFew { needed: least }
    } else if limit < needed {
        Fit::Tight { needed }
    } else {
        Fit::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    #[test]
    fn connections_slots_and_the_admin_address_are_counted() {
        let config = load_text(
            "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[admin]\nlisten = \"off\"\n\
             [worker]\ntransactional = 100\nbulk = 50\n[transport.relay]\nkind = \"smtp\"\nhost = \"relay.example\"\nconnections = 20\n\
             [transport.api]\nkind = \"postmark\"\napi_key = \"k\"\nconnections = 30\n[[route]]\nname = \"all\"\nsend = [\"relay\", \"api\"]\n",
        )
        .unwrap();
        assert_eq!(fit(&config, 264), Fit::Enough);
        assert_eq!(fit(&config, 263), Fit::Tight { needed: 264 });
        assert_eq!(fit(&config, 66), Fit::Tight { needed: 264 });
        assert_eq!(fit(&config, 65), Fit::TooFew { needed: 66 });
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let limit = raised().unwrap();
        assert_eq!(rlimit::Resource::NOFILE.get_soft().unwrap(), limit);
        assert!(limit >= 256, "{limit}");
    }
}
