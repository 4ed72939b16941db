#!/usr/bin/env bash
# The test command: installs what the tests need (Debian, root), then formatting, lints and every test.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
# The whole workspace, as the tests select it: with other packages the features of dependencies differ, and they build twice.
cargo build --workspace --bin postrider
cargo test --workspace --no-fail-fast "$@"
