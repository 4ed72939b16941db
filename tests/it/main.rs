//! The stories, one promise a file.
#![allow(clippy::unwrap_used, reason = "helpers of stories stand outside of #[test] functions, and may fail like them")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "stories print their counts")]
#![allow(clippy::cast_precision_loss, reason = "counts and seconds of a test are small")]
#![allow(clippy::case_sensitive_file_extension_comparisons, reason = "names of queues are no names of files")]
#![allow(clippy::similar_names, reason = "a story reads best with the names of its field")]

mod answers;
mod bad_input;
mod broker;
mod chaos;
mod circuit;
mod collector;
mod commands;
mod conventions;
mod crowds;
mod degraded;
mod deploy;
mod dev;
mod embedded;
mod emptied;
mod explain;
mod failover;
mod full_disk;
mod harness;
mod harness_relays;
mod journey;
mod ladder;
mod lanes;
mod ledger;
mod limiter;
mod limiter_growth;
mod limiter_servers;
mod limits;
mod limits_answers;
mod limits_dns;
mod limits_explain;
mod limits_failures;
mod limits_gauges;
mod limits_headers;
mod limits_isolation;
mod limits_operate;
mod limits_relays;
mod limits_stall;
mod operate;
mod partial;
mod poison;
mod provider_calls;
mod providers;
mod relay_trouble;
mod reload;
mod scrape;
mod ses;
mod silence;
mod status;
mod stops;
mod telemetry;
mod tidy;
mod traces;
mod waiting;
