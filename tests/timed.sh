#!/bin/sh
# Runs a test program for cargo. The one with the stories says how long each took; the flag for that is not yet stable.
program=$1
shift
case ${program##*/} in
  it-*) RUSTC_BOOTSTRAP=1 exec "$program" -Zunstable-options --report-time "$@" ;;
  *) exec "$program" "$@" ;;
esac
