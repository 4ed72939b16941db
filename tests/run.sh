#!/usr/bin/env bash
# The test command: installs what the tests need (Debian, root), then formatting, lints and every test, and at the end the slowest stories.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh
cargo fmt --all --check
# Modules that a macro declares are not found by cargo.
rustfmt --edition 2024 --check workers/providers/src/*.rs
cargo clippy --workspace --all-targets -- -D warnings
# The whole workspace, as the tests select it: with other packages the features of dependencies differ, and they build twice.
cargo build --workspace --bin postrider

# Stories wait more than they compute.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 1))}
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=$PWD/tests/timed.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --workspace --no-fail-fast "$@" | tee "$log" || status=$?
echo "The slowest stories, in seconds:"
sed -nE 's/^test (.*) \.\.\. (ok|FAILED) <([0-9.]+)s>$/\3 \1/p' "$log" | sort -rn | sed -n 1,20p
exit "$status"
