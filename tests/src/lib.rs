//! The harness: real brokers, stores and relays on ports of their own, and the means to break them.
//!
//! Everything a test starts ends with it: a value owns its process and its folder, `Drop` ends both, and a watchdog ends
//! what is left when the test program itself is killed. Modules stand in reading order; a story needs [`test_env`] and little else.

pub mod deadline;
pub mod fake_clock;
pub mod folder;
pub mod gateway;
pub mod ports;

pub mod background;
pub mod bombs;
pub mod broker_users;
pub mod process;
pub mod watchdog;

pub mod http;
pub mod tls;

pub mod rabbitmq;
pub mod redis;
pub mod redis_fleet;
pub mod vhost;

pub mod node;
pub mod python;

pub mod aiosmtpd;
pub mod dnsmasq;
pub mod postfix;
pub mod prism;
pub mod prometheus;
pub mod rotel;
pub mod sink;
pub mod stalling_relay;
pub mod talking_relay;
pub mod throttling_relay;
pub mod tmpfs;

pub mod fake_provider;
pub mod moto;

pub mod events;
pub mod fault_proxy;
pub mod mail;

pub mod log_check;
pub mod memory_limit;
pub mod postrider;
pub mod story;
pub mod test_env;
pub mod topology_manifests;
pub mod usage;

/// Says on the terminal, past the capture of the test runner, that `test` proves nothing on this machine, and why.
pub fn say_skipped(test: &str, why: &str) {
    say(&format!("==== SKIPPED: {test}: {why} ===="));
}

/// Prints past the capture of the test runner.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    // Nobody can be told about a standard error that is gone.
    let _ = writeln!(std::io::stderr(), "\n{text}\n");
}
