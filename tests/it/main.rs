//! The stories, one promise a file.
#![allow(clippy::unwrap_used, reason = "helpers of stories stand outside of #[test] functions, and may fail like them")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "stories print their counts")]
#![allow(clippy::cast_precision_loss, reason = "counts and seconds of a test are small")]
#![allow(clippy::case_sensitive_file_extension_comparisons, reason = "names of queues are no names of files")]
#![allow(clippy::similar_names, reason = "a story reads best with the names of its field")]

mod answers;
mod bad_input;
mod broker;
mod broker_silence;
mod chaos;
mod circuit;
mod circuit_probes;
mod clocks;
mod collector;
mod commands;
mod conventions;
mod dead_letter_cli;
mod deploy;
mod dev;
mod documents;
mod embedded;
mod events_waiting;
mod explain;
mod failover;
mod full_disk;
mod gateway;
mod happy_path;
mod harness;
mod harness_relays;
mod hostile_text;
mod ladder;
mod ledger;
mod limiter;
mod limiter_growth;
mod limiter_servers;
mod limits;
mod limits_answers;
mod limits_cli;
mod limits_dns;
mod limits_explain;
mod limits_failures;
mod limits_gauges;
mod limits_headers;
mod limits_isolation;
mod limits_relays;
mod limits_stall;
mod local_faults;
mod memory;
mod overload;
mod partial;
mod poison;
mod priority;
mod producers;
mod provider_calls;
mod providers;
mod reading;
mod relay_timeouts;
mod relay_trouble;
mod reload;
mod scheduling;
mod scrape;
mod ses;
mod shutdown;
mod status;
mod store_forbidden;
mod store_outage;
mod store_wiped;
mod supply_chain;
mod telemetry;
mod templates;
mod tenants;
mod tidy;
mod traces;
mod trust;
mod unreadable_headers;
mod unroutable;
